"""Labelled rows for the comparison of clusterings: small and generated sets, and files of yours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.data_sets import AS_ROWS, Split, load

_STANDARDISED = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "cancer": datasets.load_breast_cancer,
}
GENERATED = ("tiny", "moons", "noise", "blobs")
# Sets that need no file, smallest first. "tiny" (60 rows) is for a trial of the program.
BUILT_IN = ("iris", "wine", "cancer", "moons", "digits", "noise", "blobs")
_ALL_ROWS = 2**40


def load_rows(name: str, data: Path | None) -> Split:
    """Load a set of float32 rows by name, with numbered classes, and held-out rows.

    Parameters
    ----------
    name : str
        One of BUILT_IN, "tiny", or the name of a file ``data / name`` + ".npz". A file has either
        rows ``X`` with classes ``y`` and perhaps ``split`` (0 for training, other values are held
        out), or images as for :func:`benchmarks.data_sets.load`. The features of iris, wine and
        cancer, whose units differ, are standardised. A fifth is held out where no split exists.
    data : Path, optional
        Folder of the files.
    """
    if name in _STANDARDISED:
        X, y = _STANDARDISED[name](return_X_y=True)
        split = _held_out(X, y)
        scaler = StandardScaler().fit(split.train)
        return split._replace(
            train=scaler.transform(split.train), test=scaler.transform(split.test)
        )
    if name in GENERATED:
        return _held_out(*_generated(name))
    if name == "digits" or data is None:
        return load(name + AS_ROWS, data, most=_ALL_ROWS)
    path = data / f"{name}.npz"
    if not path.exists():
        raise FileNotFoundError(f"{data} has no {path.name}. Leave {name!r} out, or change --data.")
    with np.load(path) as file:
        if "X" not in file:
            return load(name + AS_ROWS, data, most=_ALL_ROWS)
        X, y = file["X"].astype(np.float32), np.unique(file["y"], return_inverse=True)[1]
        if "split" not in file:
            return _held_out(X, y)
        learn = file["split"] == 0
    return Split(X[learn], X[~learn], y[learn], y[~learn])


def _generated(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw a set; blobs have 50 to 600 rows, and the classes of noise mean nothing."""
    if name == "moons":
        return datasets.make_moons(1000, noise=0.08, random_state=0)
    if name == "noise":
        rng = np.random.default_rng(0)
        return rng.normal(size=(2000, 32)), np.arange(2000) % 10
    if name == "tiny":
        return datasets.make_blobs(60, n_features=4, random_state=0)[:2]
    sizes = np.linspace(50, 600, 10).astype(int)
    return datasets.make_blobs(sizes, n_features=20, cluster_std=3.0, random_state=0)[:2]


def _held_out(X: np.ndarray, y: np.ndarray) -> Split:
    rows, held_out, y_train, y_test = train_test_split(
        X.astype(np.float32), y, test_size=0.2, stratify=y, random_state=1
    )
    return Split(rows, held_out, y_train, y_test)
