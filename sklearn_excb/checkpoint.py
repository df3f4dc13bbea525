"""A fitted estimator on disk: tensors as safetensors, the rest as JSON; nothing is executed.

A folder holds ``teacher.safetensors`` (the parameters and buffers of f, h and C),
``arrays.safetensors`` (labels, statistics of rows) and ``estimator.json`` (version, parameters,
settings, history).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
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
from sklearn_excb.views import ViewRecipe

FORMAT = 1
_DESCRIPTION, _TEACHER, _ARRAYS = "estimator.json", "teacher.safetensors", "arrays.safetensors"


def save_estimator(
    path: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    facts: Mapping[str, Any],
    fitted: Fitted,
) -> None:
    """Write a fitted estimator; see the module.

    Parameters
    ----------
    path : str or path-like
        Folder; made if it is not there.
    parameters : mapping
        The estimator's.
    facts : mapping
        What it knows of its inputs.
    fitted : Fitted
        What it learned.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {field.name: getattr(fitted.recipe, field.name) for field in fields(fitted.recipe)}
    arrays = {"labels": fitted.labels}
    if isinstance(fitted.recipe, RowRecipe):
        arrays |= {"mean": recipe.pop("mean"), "std": recipe.pop("std")}
    description = {
        "format": FORMAT,
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "facts": {name: _plain(value) for name, value in facts.items()},
        "settings": fitted.settings.as_dict(),
        "recipe": {"kind": type(fitted.recipe).__name__, **recipe},
        "own_backbone": not isinstance(fitted.settings.backbone, str),
        "n_backbone_features": fitted.n_backbone_features,
        "history": [{key: _finite(value) for key, value in e.items()} for e in fitted.history],
    }
    state = {name: t.detach().cpu().contiguous() for name, t in fitted.teacher.state_dict().items()}
    save_file(state, folder / _TEACHER)
    save_arrays(arrays, folder / _ARRAYS)
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False))


def load_estimator(
    path: str | os.PathLike[str], backbone: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Any], Fitted]:
    """Read what :func:`save_estimator` wrote: parameters, facts of the inputs, what was learned.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the format is unknown, or the user's own backbone is needed and not given.
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
    teacher.load_state_dict(load_file(folder / _TEACHER))
    fitted = Fitted(
        teacher.eval(),
        settings,
        _read_recipe(description["recipe"], arrays),
        description["n_backbone_features"],
        arrays["labels"],
        [{key: _number(value) for key, value in e.items()} for e in description["history"]],
    )
    facts = {name: _tuples(value) for name, value in description["facts"].items()}
    if "feature_names_in_" in facts:
        facts["feature_names_in_"] = np.array(facts["feature_names_in_"], dtype=object)
    return parameters, facts, fitted


def _read_recipe(
    description: dict[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]
) -> ViewRecipe | RowRecipe:
    kind = description.pop("kind")
    values = {name: _tuples(value) for name, value in description.items()}
    if kind == "RowRecipe":
        return RowRecipe(**values, mean=arrays["mean"], std=arrays["std"])
    return ViewRecipe(**values)


def _plain(value: Any) -> Any:
    """Value as JSON holds it; what it cannot (modules, generators) becomes its name or None."""
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, nn.Module):
        return type(value).__name__
    return None if isinstance(value, np.random.RandomState) else value


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return float("nan") if value is None else value
