"""Description of a network and its image preparation as plain values, to rebuild it from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor, nn

from sklearn_excb.networks.backbones import build_backbone
from sklearn_excb.networks.frozen import Frozen
from sklearn_excb.networks.heads import HeadShape
from sklearn_excb.networks.student_teacher import ClusterNetwork, build_teacher
from sklearn_excb.runtime.private_generator import PrivateGenerator
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
    """Describe a network without its weights.

    Parameters
    ----------
    network : ClusterNetwork
        Student or teacher.
    settings : Settings
        Settings of the fit.
    recipe : ViewRecipe or RowRecipe
        Recipe of the views.
    n_features : int
        Number of features of the backbone.
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
    """Rebuild a network from the result of :func:`describe` and its weights.

    Parameters
    ----------
    where : str
        Name of the file, for messages.
    description : mapping
        Result of :func:`describe`, perhaps with lists in place of tuples.
    weights : mapping
        Weights of the network.
    own : nn.Module or None
        The user's own backbone, if the described one was the user's own.

    Returns
    -------
    network : ClusterNetwork
        Network on the CPU, in evaluation mode.
    settings : Settings
        Settings of the fit.
    recipe : ViewRecipe or RowRecipe
        Recipe of the views.

    Raises
    ------
    ValueError
        If the description has unknown or missing parts, ``own`` is needed and None, or the weights
        do not fit.
    """
    values = {**_absent_before(description), **description["settings"]}
    if description["own_backbone"]:
        if own is None:
            raise ValueError(
                f"{where} was fitted with a backbone of your own, {values['backbone']}. Use "
                "load(path, backbone=module) with a module of the same architecture."
            )
        values["backbone"] = own
    check_names(where, values, (field.name for field in fields(Settings)), "settings")
    settings = Settings(**{name: as_tuple(value) for name, value in values.items()})
    with PrivateGenerator(0):  # the random initial weights are replaced below
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
            f"The weights in {where} do not fit the backbone. It must have the architecture of the "
            f"fitted backbone: {error}"
        ) from error
    return network.eval(), settings, _recipe(where, description["recipe"])


def _absent_before(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that earlier versions did not write, with the values that they used."""
    frozen = description["settings"].get("freeze_backbone", False)
    crops = description["recipe"]["kind"] == "ViewRecipe" and not frozen
    views = "crops" if crops else "noise"
    return {"freeze_backbone": False, "views": views, "size_tolerance": 1.0, "n_starts": 1}


def _recipe(where: str, description: Mapping[str, Any]) -> ViewRecipe | RowRecipe:
    values = {name: as_tuple(value) for name, value in description.items()}
    name = values.pop("kind")
    kind = {"RowRecipe": RowRecipe, "ViewRecipe": ViewRecipe}.get(name)
    if kind is None:
        raise ValueError(
            f"{where} has an unknown kind of recipe, {name!r}. Load it with the version of "
            "sklearn_excb that wrote it."
        )
    check_names(where, values, (field.name for field in fields(kind)), f"values of {name}")
    return kind(**values)


def check_names(where: str, found: Iterable[str], needed: Iterable[str], kind: str) -> None:
    """Check that a description has exactly the names that this version knows."""
    known = {*needed}
    missing, unknown = sorted(known - {*found}), sorted({*found} - known)
    if missing or unknown:
        raise ValueError(
            f"{where} has other {kind} than this version of sklearn_excb expects (unknown: "
            f"{', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}). Load it "
            "with the version that wrote it."
        )


def as_tuple(value: Any) -> Any:
    """Convert a list to a tuple, since JSON holds tuples as lists."""
    return tuple(value) if isinstance(value, list) else value
