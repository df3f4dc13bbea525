"""A fitted estimator on disk: tensors as safetensors, the rest as JSON; nothing is executed.

A folder holds ``teacher.safetensors`` (the parameters and buffers of f, h and C),
``arrays.safetensors`` (labels, where clusters lie for merging, statistics of rows) and
``estimator.json`` (version, parameters, settings, history).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import nn

from sklearn_excb.auto import Settings
from sklearn_excb.backbones import build_backbone
from sklearn_excb.fitting import Fitted
from sklearn_excb.networks import build_networks
from sklearn_excb.row_views import RowRecipe
from sklearn_excb.sources import Skipped
from sklearn_excb.views import ViewRecipe

FORMAT = 6
_DESCRIPTION, _TEACHER, _ARRAYS = "estimator.json", "teacher.safetensors", "arrays.safetensors"


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
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {field.name: getattr(fitted.recipe, field.name) for field in fields(fitted.recipe)}
    arrays: dict[str, np.ndarray[Any, Any]] = {"labels": fitted.labels}
    if fitted.group_centroids is not None:
        arrays["group_centroids"] = fitted.group_centroids
    if isinstance(fitted.recipe, RowRecipe):
        arrays["mean"] = recipe.pop("mean")
    description = {
        "format": FORMAT,
        "parameters": parameters,
        "resolved": resolved,
        "facts": facts,
        "settings": fitted.settings.as_dict(),
        "recipe": {"kind": type(fitted.recipe).__name__, **recipe},
        "own_backbone": not isinstance(fitted.settings.backbone, str),
        "n_backbone_features": fitted.n_backbone_features,
        "image_shape": fitted.image_shape,
        "history": fitted.history,
    }
    text = json.dumps(plain(description), indent=1, allow_nan=False)
    # clones: safetensors refuses tensors that share memory, and other orders than the usual
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in fitted.teacher.state_dict().items()
    }
    _replace(folder / _TEACHER, lambda file: save_file(state, file))
    _replace(folder / _ARRAYS, lambda file: save_arrays(arrays, file))
    _replace(folder / _DESCRIPTION, lambda file: file.write_text(text, encoding="utf-8"))


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the file and put it in its place: what was there stays until it is replaced."""
    beside = file.with_name(file.name + ".partial")
    write(beside)
    beside.replace(file)


def load_estimator(
    path: str | os.PathLike[str], backbone: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Fitted]:
    """Read what :func:`save_estimator` wrote: parameters, resolved ones, facts, what was learned.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the format is unknown, or the user's own backbone is needed and not given, or another
        than the one that was fitted.
    """
    folder = Path(path)
    file = folder / _DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(
            f"No saved estimator in {folder}: it has no {_DESCRIPTION}. Pass the folder that "
            "save() wrote."
        )
    description = json.loads(file.read_text())
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {description.get('format')!r}; this version of sklearn_excb reads "
            f"format {FORMAT}. Load it with the version that wrote it."
        )
    parameters, settings = description["parameters"], description["settings"]
    if description["own_backbone"]:
        if backbone is None:
            raise ValueError(
                f"{folder} was fitted with a backbone of your own, {settings['backbone']}: pass "
                "load(path, backbone=module) with a module of the same architecture."
            )
        parameters["backbone"] = settings["backbone"] = backbone
    settings = Settings(**{name: _tuples(value) for name, value in settings.items()})
    parameters = {name: _tuples(value) for name, value in parameters.items()}
    arrays = load_arrays(folder / _ARRAYS)
    with torch.random.fork_rng(devices=[]):  # the fresh weights are drawn only to be replaced
        teacher = build_networks(
            build_backbone(
                settings.backbone,
                n_channels=settings.n_channels,
                image_size=settings.image_size or None,
            ),
            description["n_backbone_features"],
            n_clusters=settings.K,
            head_width=settings.head_width,
        ).teacher
    try:
        teacher.load_state_dict(load_file(folder / _TEACHER))
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {folder} do not fit the backbone, which must have the architecture of "
            f"the one that was fitted: {error}"
        ) from error
    fitted = Fitted(
        teacher.eval(),
        settings,
        _read_recipe(description["recipe"], arrays),
        description["n_backbone_features"],
        _tuples(description["image_shape"]),
        arrays["labels"],
        [{key: _number(value) for key, value in e.items()} for e in description["history"]],
        arrays.get("group_centroids"),
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
    description: dict[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]
) -> ViewRecipe | RowRecipe:
    kind = description.pop("kind")
    values = {name: _tuples(value) for name, value in description.items()}
    if kind == "RowRecipe":
        return RowRecipe(**values, mean=arrays["mean"])
    return ViewRecipe(**values)


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
    if isinstance(value, torch.device):
        return str(value)
    return value if isinstance(value, (str, int, bool)) else None


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _number(value: Any) -> Any:
    return float("nan") if value is None else value
