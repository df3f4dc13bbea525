"""A network and how its images are prepared, as plain values, and rebuilt from these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_excb.networks.backbones import build_backbone
from sklearn_excb.networks.frozen import Frozen
from sklearn_excb.networks.heads import HeadShape
from sklearn_excb.networks.student_teacher import ClusterNetwork, build_teacher
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe


def describe(
    network: ClusterNetwork,
    settings: Settings,
    recipe: ViewRecipe | RowRecipe,
    *,
    n_features: int,
    image_shape: tuple[int, int],
) -> dict[str, Any]:
    """Describe all but the weights.

    Parameters
    ----------
    network : ClusterNetwork
        Student or teacher.
    settings : Settings
        Of its fit.
    recipe : ViewRecipe or RowRecipe
        Of its views.
    n_features : int
        What the backbone gives.
    image_shape : tuple of int
        Typical (height, width) of the images; (0, 0) for rows.
    """
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {
        "settings": settings.as_dict(),
        "recipe": {"kind": type(recipe).__name__, **values},
        "own_backbone": not isinstance(settings.backbone, str),
        "n_backbone_features": n_features,
        "head": asdict(HeadShape.of(network.projector)),
        "image_shape": image_shape,
    }


DESCRIBED = ("settings", "recipe", "own_backbone", "n_backbone_features", "head", "image_shape")


def rebuild(
    where: str, description: Mapping[str, Any], weights: Mapping[str, Tensor], own: nn.Module | None
) -> tuple[ClusterNetwork, Settings, ViewRecipe | RowRecipe]:
    """Build what :func:`describe` was given.

    Parameters
    ----------
    where : str
        The file, for messages.
    description : mapping
        As it was made, or with lists in the place of tuples.
    weights : mapping
        The network's.
    own : nn.Module or None
        Backbone to take if the described one is not made here.

    Returns
    -------
    network : ClusterNetwork
        On the CPU, in evaluation mode.
    settings : Settings
    recipe : ViewRecipe or RowRecipe

    Raises
    ------
    ValueError
        If something in it is not known here, ``own`` is needed and None, or the weights do not fit.
    """
    values = {"freeze_backbone": False, **description["settings"]}  # before format 8
    if description["own_backbone"]:
        if own is None:
            raise ValueError(
                f"{where} is of a fit with a backbone of your own, {values['backbone']}: pass "
                "load(path, backbone=module) with a module of the same architecture."
            )
        values["backbone"] = own
    check_names(where, values, (field.name for field in fields(Settings)), "settings")
    settings = Settings(**{name: as_tuple(value) for name, value in values.items()})
    with torch.random.fork_rng(devices=[]):  # the fresh weights are drawn only to be replaced
        backbone = build_backbone(
            settings.backbone,
            n_channels=settings.n_channels,
            image_size=settings.image_size or None,
        )
        network = build_teacher(
            Frozen(backbone) if settings.freeze_backbone else backbone,
            description["n_backbone_features"],
            n_clusters=settings.K,
            head=HeadShape(**{name: as_tuple(of) for name, of in description["head"].items()}),
            with_gain="centroids.gain" in weights,
        )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {where} do not fit the backbone, which must have the architecture of "
            f"the one that was fitted: {error}"
        ) from error
    return network.eval(), settings, _recipe(where, description["recipe"])


def _recipe(where: str, description: Mapping[str, Any]) -> ViewRecipe | RowRecipe:
    values = {name: as_tuple(value) for name, value in description.items()}
    name = values.pop("kind")
    kind = {"RowRecipe": RowRecipe, "ViewRecipe": ViewRecipe}.get(name)
    if kind is None:
        raise ValueError(f"{where}: {name!r} is no kind of recipe that is known here.")
    check_names(where, values, (field.name for field in fields(kind)), f"values of {name}")
    return kind(**values)


def check_names(where: str, found: Iterable[str], needed: Iterable[str], kind: str) -> None:
    """Refuse a description with more or less than is known here."""
    known = {*needed}
    missing, unknown = sorted(known - {*found}), sorted({*found} - known)
    if missing or unknown:
        raise ValueError(
            f"{where} has other {kind} than this version of sklearn_excb knows: "
            f"{', '.join(unknown) or 'none'} unknown, {', '.join(missing) or 'none'} missing. Load "
            "it with the version that wrote it."
        )


def as_tuple(value: Any) -> Any:
    """A list, as which JSON holds tuples, as the tuple it was."""
    return tuple(value) if isinstance(value, list) else value
