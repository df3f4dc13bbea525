"""Files of estimators: saved estimators and checkpoints. Nothing in a file is executed.

A saved estimator is a folder with ``estimator.json`` (version, parameters, settings, history) and
the file that it names, ``tensors-....safetensors``: the parameters and buffers of f, h and C, the
labels, the positions of clusters for merging, and the statistics of rows. Both have checksums.
``estimator.json`` is written last. After an interrupted save, the folder therefore still has the
previous estimator. Processes may save to one folder and
load from it at any time; the last to finish is what is there.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_excb.data.sources import Skipped
from sklearn_excb.exceptions import DamagedFileError
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.storage.checkpoint_folder import read_checkpoint
from sklearn_excb.storage.json_files import read_object
from sklearn_excb.storage.packing import pack, unpack
from sklearn_excb.storage.tensor_files import read_tensors, text_checksum, write_tensors
from sklearn_excb.training.network_description import (
    DESCRIBED,
    as_tuple,
    check_names,
    describe,
    rebuild,
)

FORMAT = 9
_READ = (7, 8, FORMAT)
_DESCRIPTION = "estimator.json"
_NAME = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
_TEACHER = "teacher."
_LONGEST_WAIT, _BETWEEN_TRIES = 60.0, 0.02  # seconds to wait for another save
_LEFT_BEHIND = 86_400.0  # seconds after which nobody is still writing a description for tensors
_PARTS = {"format", "tensors", "tensors_checksum", "parameters", "resolved", "facts", "history"}
Loaded = tuple[dict[str, Any], dict[str, Any], dict[str, Any], Fitted]


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds an estimator that :func:`save_estimator` wrote."""
    return (Path(path) / _DESCRIPTION).is_file()


def save_estimator(
    path: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    resolved: Mapping[str, Any],
    facts: Mapping[str, Any],
    fitted: Fitted,
) -> None:
    """Write a fitted estimator to a folder, in the format that the module describes.

    Parameters
    ----------
    path : str or path-like
        Folder, created if it does not exist.
    parameters, resolved : mappings
        Parameters of the estimator, as passed and with "auto" replaced.
    facts : mapping
        Attributes that describe the training samples.
    fitted : Fitted
        Result of the fit.
    """
    from sklearn_excb.evaluation import output_files

    folder = output_files.make_folder(path)
    described = describe(
        fitted.teacher,
        fitted.settings,
        fitted.recipe,
        n_features=fitted.n_backbone_features,
        image_shape=fitted.image_shape,
    )
    arrays: dict[str, Any] = {"labels": fitted.labels}
    if fitted.group_centroids is not None:
        arrays["group_centroids"] = fitted.group_centroids
    if isinstance(described["recipe"]["mean"], np.ndarray):  # statistics of rows
        arrays["mean"] = described["recipe"].pop("mean")
    weights = fitted.teacher.state_dict()
    arrays |= {_TEACHER + name: weight for name, weight in weights.items()}
    with output_files.naming(folder), _alone_in(folder):
        replaced = _superseded(folder)
        file = folder / f"tensors-{uuid.uuid4().hex[:16]}.safetensors"
        try:
            checksum = write_tensors(file, *pack(arrays))
            description = plain(
                {
                    "format": FORMAT,
                    "tensors": file.name,
                    "tensors_checksum": checksum,
                    "parameters": parameters,
                    "resolved": resolved,
                    "facts": facts,
                    "history": fitted.history,
                    **described,
                }
            )
            checked = {**description, "checksum": _checksum(description)}
            with output_files.replacing(folder / _DESCRIPTION) as beside:
                beside.write_text(json.dumps(checked, indent=1, allow_nan=False), encoding="utf-8")
        except BaseException:
            if _named_in(folder) != file.name:
                file.unlink(missing_ok=True)
            raise
        for old in replaced:
            with suppress(OSError):  # it is being read, on Windows
                old.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that save to a folder, a minute at most.

    Without the lock, as on file systems and systems that have none, saves to one folder are safe
    too, but leave the tensors of those that they overtook.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    handle, end = os.open(folder, os.O_RDONLY), time.monotonic() + _LONGEST_WAIT
    try:
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_BETWEEN_TRIES)
            except OSError:  # of a file system without locks
                break
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # for children that were forked meanwhile, too
        os.close(handle)


def _superseded(folder: Path) -> list[Path]:
    """Return the files of tensors that nothing names once a new description is written.

    Another process may be saving to the folder. What the current description names will not be
    named again. Other files may be about to be named, unless they are old: then a save was killed.
    """
    named, found = _named_in(folder), []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            if _NAME.fullmatch(file.name) and (
                file.name == named or time.time() - file.stat().st_mtime > _LEFT_BEHIND
            ):
                found.append(file)
    return found


def _named_in(folder: Path) -> str | None:
    """Return the file of tensors that a description names; None if it cannot be read."""
    try:
        return read_object(folder / _DESCRIPTION)["tensors"]
    except (OSError, ValueError, KeyError):
        return None


def _checksum(description: Mapping[str, Any]) -> str:
    return text_checksum(json.dumps(description, sort_keys=True))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description, and the tensors and arrays, of a saved estimator.

    Another process may save to the folder meanwhile: it removes the tensors that a description
    named once a new description is there, which is read then.
    """
    named = _named_in(folder)
    while True:
        try:
            return _read_once(folder)
        except (FileNotFoundError, DamagedFileError):
            before, named = named, _named_in(folder)
            if named in (None, before):
                raise


def _read_once(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = folder / _DESCRIPTION
    try:
        description = read_object(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"No saved estimator in {folder}: the folder has no {_DESCRIPTION}. Pass the folder "
            "that save() wrote."
        ) from None
    if "format" not in description:
        raise DamagedFileError(f"{file} is damaged: it does not contain a format.")
    known = description["format"]
    if known not in _READ:
        raise ValueError(
            f"{file} has format {known!r}, but this version of sklearn_excb reads formats "
            f"{_READ[0]} to {FORMAT}. Load it with the version that wrote it."
        )
    if description.pop("checksum", None) != _checksum(description):
        raise DamagedFileError(
            f"{file} is damaged or was edited: its checksum does not match its contents."
        )
    check_names(str(file), description, {*_PARTS, *DESCRIBED}, "parts")
    name = description["tensors"]
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"{file} names {name!r}, which is not a file of tensors beside it.")
    tensors, rest, checksum = read_tensors(folder / name)
    if checksum != description["tensors_checksum"]:
        raise DamagedFileError(
            f"{folder / name} does not belong to {file}: save() did not write them together."
        )
    return description, unpack(tensors, rest)


def load_estimator(path: str | os.PathLike[str], backbone: nn.Module | None) -> Loaded:
    """Read an estimator that :func:`save_estimator` wrote, or a checkpoint of a fit.

    Parameters
    ----------
    path : str or path-like
        Folder of a saved estimator, or file of a checkpoint.
    backbone : nn.Module or None
        The user's own backbone, if that was fitted.

    Returns
    -------
    parameters, resolved, facts : dicts
        Mappings as passed to :func:`save_estimator`.
    fitted : Fitted
        Result of the fit; without labels if it comes from a checkpoint.

    Raises
    ------
    FileNotFoundError
        If the file or the saved estimator does not exist.
    ValueError
        If the format is unknown or a file is damaged. If the user's own backbone is missing, or is
        not the one that was fitted.
    """
    from sklearn_excb.evaluation import output_files

    path = output_files.as_path(path)
    try:
        read = _read_checkpoint if path.exists() and not path.is_dir() else _read
        return _built(path, *read(path), backbone)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error} Load another copy of it, or fit again.") from error
    except (AttributeError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a file of save() or a checkpoint of a fit: "
            f"{type(error).__name__}: {error}"
        ) from error


def _read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint as :func:`_read` returns a saved estimator, without labels."""
    state = read_checkpoint(file)
    run = state["about"]
    described, parameters = run["network"], run["parameters"]
    settings = described["settings"]
    if run["data"]["kind"] == "rows":
        facts = {"n_features_in_": settings["n_channels"]}
    else:
        facts = {"n_channels_": settings["n_channels"], "image_shape_": described["image_shape"]}
    description = {
        **described,
        "parameters": parameters,
        "resolved": {**parameters, "random_state": run["seed"], **settings},
        "facts": {**facts, "skipped_": []},
        "history": state["history"],
    }
    networks = state["networks"]
    arrays = {name: of for name, of in networks.items() if name.startswith(_TEACHER)}
    return description, {"labels": np.empty(0, dtype=np.int64), **arrays}


def _built(
    path: Path,
    description: dict[str, Any],
    arrays: dict[str, Any],
    backbone: nn.Module | None,
) -> Loaded:
    if "mean" in arrays:
        description["recipe"]["mean"] = arrays["mean"]
    weights = {n.removeprefix(_TEACHER): w for n, w in arrays.items() if n.startswith(_TEACHER)}
    teacher, settings, recipe = rebuild(str(path), description, weights, backbone)
    parameters = {name: as_tuple(value) for name, value in description["parameters"].items()}
    if description["own_backbone"]:
        parameters["backbone"] = backbone
    fitted = Fitted(
        teacher,
        settings,
        recipe,
        description["n_backbone_features"],
        as_tuple(description["image_shape"]),
        arrays["labels"],
        [{key: _number(value) for key, value in e.items()} for e in description["history"]],
        arrays.get("group_centroids"),
        description["resolved"]["random_state"],
    )
    facts = {name: as_tuple(value) for name, value in description["facts"].items()}
    if "feature_names_in_" in facts:
        facts["feature_names_in_"] = np.array(facts["feature_names_in_"], dtype=object)
    for name in {"sample_names_", "ignored_files_"}.intersection(facts):
        facts[name] = np.array(facts[name], dtype=object)
    facts["skipped_"] = [Skipped(*skipped) for skipped in facts["skipped_"]]
    resolved = {name: as_tuple(value) for name, value in description["resolved"].items()}
    return parameters, resolved, facts, fitted


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: modules as their class names, NaN and generators as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    return value if isinstance(value, (str, int, bool)) else None


def _number(value: Any) -> Any:
    return float("nan") if value is None else value
