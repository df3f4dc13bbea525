"""A fitted estimator on disk: tensors as safetensors, the rest as JSON; nothing is executed.

A folder holds ``estimator.json`` (version, parameters, settings, history) and the file that this
names, ``tensors-....safetensors``: the parameters and buffers of f, h and C, labels, where clusters
lie for merging, statistics of rows. Both have checksums. The description is written last, so that a
folder in which a save was cut off still has the one before.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_excb.auto import Settings
from sklearn_excb.backbones import build_backbone
from sklearn_excb.fitting import Fitted
from sklearn_excb.networks import HeadShape, build_teacher
from sklearn_excb.packing import pack, unpack
from sklearn_excb.row_views import RowRecipe
from sklearn_excb.sources import Skipped
from sklearn_excb.tensor_files import DamagedFileError, read_tensors, text_checksum, write_tensors
from sklearn_excb.views import ViewRecipe

FORMAT = 7
_DESCRIPTION = "estimator.json"
_NAME = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
_TEACHER = "teacher."
_PARTS = {
    *("format", "tensors", "tensors_checksum"),
    *("parameters", "resolved", "facts", "settings", "recipe", "own_backbone"),
    *("n_backbone_features", "head", "image_shape", "history"),
}


def save_estimator(
    path: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    resolved: Mapping[str, Any],
    facts: Mapping[str, Any],
    fitted: Fitted,
) -> None:
    """Write a fitted estimator; see the module.

    Parameters
    ----------
    path : str or path-like
        Folder; made if it is not there.
    parameters, resolved : mappings
        The estimator's, as given and with "auto" replaced.
    facts : mapping
        What it knows of its inputs.
    fitted : Fitted
        What it learned.
    """
    from evaluation.output_files import replacing

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {field.name: getattr(fitted.recipe, field.name) for field in fields(fitted.recipe)}
    arrays: dict[str, Any] = {"labels": fitted.labels}
    if fitted.group_centroids is not None:
        arrays["group_centroids"] = fitted.group_centroids
    if isinstance(fitted.recipe, RowRecipe):
        arrays["mean"] = recipe.pop("mean")
    weights = fitted.teacher.state_dict()
    arrays |= {_TEACHER + name: weight for name, weight in weights.items()}
    before = [file for file in folder.iterdir() if _NAME.fullmatch(file.name)]
    file = folder / f"tensors-{uuid.uuid4().hex[:16]}.safetensors"
    checksum = write_tensors(file, *pack(arrays))
    description = plain(
        {
            "format": FORMAT,
            "tensors": file.name,
            "tensors_checksum": checksum,
            "parameters": parameters,
            "resolved": resolved,
            "facts": facts,
            "settings": fitted.settings.as_dict(),
            "recipe": {"kind": type(fitted.recipe).__name__, **recipe},
            "own_backbone": not isinstance(fitted.settings.backbone, str),
            "n_backbone_features": fitted.n_backbone_features,
            "head": asdict(HeadShape.of(fitted.teacher.projector)),
            "image_shape": fitted.image_shape,
            "history": fitted.history,
        }
    )
    described = {**description, "checksum": _checksum(description)}
    with replacing(folder / _DESCRIPTION) as beside:
        beside.write_text(json.dumps(described, indent=1, allow_nan=False), encoding="utf-8")
    for old in before:
        old.unlink(missing_ok=True)


def _checksum(description: Mapping[str, Any]) -> str:
    return text_checksum(json.dumps(description, sort_keys=True))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Description, and tensors and arrays, as they were written."""
    file = folder / _DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(
            f"No saved estimator in {folder}: it has no {_DESCRIPTION}. Pass the folder that "
            "save() wrote."
        )
    try:
        description = json.loads(file.read_bytes())
    except ValueError as error:
        raise DamagedFileError(f"{file} is damaged: {error}.") from error
    known = description.get("format") if isinstance(description, dict) else None
    if known != FORMAT:
        raise ValueError(
            f"{file} has format {known!r}; this version of sklearn_excb reads "
            f"format {FORMAT}. Load it with the version that wrote it."
        )
    if description.pop("checksum", None) != _checksum(description):
        raise DamagedFileError(
            f"{file} is damaged, or was edited: its checksum is not that of what is in it."
        )
    _check_names(file, description, _PARTS, "parts")
    name = description["tensors"]
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"{file} names {name!r}, which is no file of tensors beside it.")
    tensors, rest, checksum = read_tensors(folder / name)
    if checksum != description["tensors_checksum"]:
        raise DamagedFileError(f"{folder / name} is not the file that {file} was written with.")
    return description, unpack(tensors, rest)


def _check_names(file: Path, found: Iterable[str], needed: Iterable[str], kind: str) -> None:
    """Refuse a description with more or less than is known here."""
    known = {*needed}
    missing, unknown = sorted(known - {*found}), sorted({*found} - known)
    if missing or unknown:
        raise ValueError(
            f"{file} has other {kind} than this version of sklearn_excb knows: "
            f"{', '.join(unknown) or 'none'} unknown, {', '.join(missing) or 'none'} missing. Load "
            "it with the version that wrote it."
        )


def load_estimator(
    path: str | os.PathLike[str], backbone: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Fitted]:
    """Read what :func:`save_estimator` wrote: parameters, resolved ones, facts, what was learned.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the format is unknown or a file is damaged, or the user's own backbone is needed and not
        given, or another than the one that was fitted.
    """
    folder = Path(path)
    try:
        return _built(folder, *_read(folder), backbone)
    except (AttributeError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise ValueError(
            f"{folder} is not what save() writes: {type(error).__name__}: {error}"
        ) from error


def _built(
    folder: Path,
    description: dict[str, Any],
    arrays: dict[str, Any],
    backbone: nn.Module | None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Fitted]:
    parameters, settings = description["parameters"], description["settings"]
    if description["own_backbone"]:
        if backbone is None:
            raise ValueError(
                f"{folder} was fitted with a backbone of your own, {settings['backbone']}: pass "
                "load(path, backbone=module) with a module of the same architecture."
            )
        parameters["backbone"] = settings["backbone"] = backbone
    known = (field.name for field in fields(Settings))
    _check_names(folder / _DESCRIPTION, settings, known, "settings")
    settings = Settings(**{name: _tuples(value) for name, value in settings.items()})
    parameters = {name: _tuples(value) for name, value in parameters.items()}
    with torch.random.fork_rng(devices=[]):  # the fresh weights are drawn only to be replaced
        teacher = build_teacher(
            build_backbone(
                settings.backbone,
                n_channels=settings.n_channels,
                image_size=settings.image_size or None,
            ),
            description["n_backbone_features"],
            n_clusters=settings.K,
            head=HeadShape(**{name: _tuples(of) for name, of in description["head"].items()}),
            with_gain=f"{_TEACHER}centroids.gain" in arrays,
        )
    try:
        weights = {n: value for n, value in arrays.items() if n.startswith(_TEACHER)}
        teacher.load_state_dict({n.removeprefix(_TEACHER): value for n, value in weights.items()})
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {folder} do not fit the backbone, which must have the architecture of "
            f"the one that was fitted: {error}"
        ) from error
    fitted = Fitted(
        teacher.eval(),
        settings,
        _read_recipe(folder / _DESCRIPTION, description["recipe"], arrays),
        description["n_backbone_features"],
        _tuples(description["image_shape"]),
        arrays["labels"],
        [{key: _number(value) for key, value in e.items()} for e in description["history"]],
        arrays.get("group_centroids"),
        description["resolved"]["random_state"],
    )
    facts = {name: _tuples(value) for name, value in description["facts"].items()}
    if "feature_names_in_" in facts:
        facts["feature_names_in_"] = np.array(facts["feature_names_in_"], dtype=object)
    for name in {"sample_names_", "ignored_files_"}.intersection(facts):
        facts[name] = np.array(facts[name], dtype=str)
    facts["skipped_"] = [Skipped(*skipped) for skipped in facts["skipped_"]]
    resolved = {name: _tuples(value) for name, value in description["resolved"].items()}
    return parameters, resolved, facts, fitted


def _read_recipe(
    file: Path, description: dict[str, Any], arrays: Mapping[str, Any]
) -> ViewRecipe | RowRecipe:
    name = description.pop("kind")
    kind = {"RowRecipe": RowRecipe, "ViewRecipe": ViewRecipe}.get(name)
    if kind is None:
        raise ValueError(f"{file}: {name!r} is no kind of recipe that is known here.")
    values = {name: _tuples(value) for name, value in description.items()}
    if kind is RowRecipe:
        values["mean"] = arrays["mean"]
    _check_names(file, values, (field.name for field in fields(kind)), f"values of {name}")
    return kind(**values)


def plain(value: Any) -> Any:
    """Value as JSON holds it; modules by the name of their class, NaN and generators as null."""
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


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _number(value: Any) -> Any:
    return float("nan") if value is None else value
