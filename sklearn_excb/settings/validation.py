"""Validation of the estimator's parameters. All checks happen here, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sklearn_excb.settings.auto_rules import MOST_ENLARGED
from sklearn_excb.settings.ranges import CONSTRAINTS, NOT_AUTO
from sklearn_excb.settings.resolve import Facts, Settings

CHECKPOINT_PARAMETERS = frozenset(
    ("checkpoint_dir", "checkpoint_every", "n_checkpoints", "resume", "warm_start")
)


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check that every parameter is in its range.

    Parameters
    ----------
    parameters : mapping
        Parameters of the estimator, ``get_params(deep=False)``.

    Raises
    ------
    ValueError
        If a parameter is out of range. The message names the first such parameter, its value and
        the allowed values.
    """
    for name, (check, needed) in CONSTRAINTS.items():
        value = parameters[name]
        auto = name not in NOT_AUTO
        if (auto and isinstance(value, str) and value == "auto") or check(value):
            continue
        allowed = f"'auto' or {needed}" if auto else needed
        raise ValueError(f"{name}={value!r} cannot be used: it must be {allowed}.")


_IMAGE_VIEW_PARAMETERS = ("local_size", "flip")


def check_weights(parameters: Mapping[str, Any]) -> None:
    """Check that ``backbone``, ``pretrained`` and ``freeze_backbone`` go together.

    A frozen backbone needs trained weights, and admits no parameter that only matters for training
    the backbone.

    Raises
    ------
    ValueError
        If a parameter does not fit the others. The message names the first one.
    """
    backbone, pretrained = parameters["backbone"], parameters["pretrained"]
    if not isinstance(pretrained, bool) and isinstance(backbone, str) and backbone == "auto":
        raise ValueError(
            f"pretrained={os.fspath(pretrained)!r} is a weight file. Name the backbone that the "
            "weights belong to, such as backbone='resnet18'."
        )
    if isinstance(backbone, str) and "." in backbone and not pretrained:
        raise ValueError(
            f"backbone={backbone!r} names pretrained weights. Set pretrained=True to use them, or "
            f"pass backbone={backbone.partition('.')[0]!r} to train from scratch."
        )
    if not parameters["freeze_backbone"]:
        return
    if isinstance(backbone, str) and not pretrained:
        raise ValueError(
            f"freeze_backbone=True would freeze the random weights of backbone={backbone!r}. Set "
            "pretrained=True, or pass a trained module."
        )
    if parameters["compile"]:
        raise ValueError(
            "compile=True compiles a backbone for training, but freeze_backbone=True does not "
            "train the backbone. Set compile=False."
        )
    for name in _IMAGE_VIEW_PARAMETERS:
        if parameters[name] != "auto":
            raise ValueError(
                f"{name}={parameters[name]!r} is for views of images, but freeze_backbone=True "
                f'makes views of features. Leave {name}="auto".'
            )


_IMAGE_PARAMETERS = ("image_size", "local_size", "n_channels", "flip")


def check_rows_parameters(parameters: Mapping[str, Any]) -> None:
    """Check that no parameter of images is set for rows, where it would be ignored.

    Raises
    ------
    ValueError
        If such a parameter is set. The message names the first one.
    """
    for name in ("pretrained", "freeze_backbone"):
        if parameters[name]:
            raise ValueError(
                f"{name}={parameters[name]!r} is for image backbones, but X holds 2-D rows, which "
                f"are features already. Leave {name}=False."
            )
    for name in _IMAGE_PARAMETERS:
        if parameters[name] != "auto":
            raise ValueError(
                f"{name}={parameters[name]!r} is for images, but X holds 2-D rows. Leave "
                f'{name}="auto", or pass images (n, h, w) or (n, h, w, c).'
            )


def check_views(parameters: Mapping[str, Any], facts: Facts) -> None:
    """Check that ``views`` fits the samples.

    Raises
    ------
    ValueError
        If views of features are wanted for images or the other way round, or neighbours in a
        stream.
    """
    views = parameters["views"]
    if views == "auto":
        return
    crops = facts.kind == "images" and not parameters["freeze_backbone"]
    if crops and views != "crops":
        raise ValueError(
            f"views={views!r} is for rows and for frozen backbones, but this backbone is trained "
            'on crops of images. Leave views="auto", or set freeze_backbone=True.'
        )
    if views == "crops" and not crops:
        raise ValueError(
            "views='crops' is for backbones that are trained on images, but views of rows and of "
            'frozen features are made of numbers. Leave views="auto".'
        )
    if views in ("neighbours", "neighbors") and not facts.is_whole:
        raise ValueError(
            f"views={views!r} needs all rows from the start, but a stream shows only some at a "
            'time. Set views="noise" or "auto", or pass all rows to fit.'
        )


def check_devices(settings: Settings, n_devices: int) -> None:
    """Check that every device gets at least one image of each batch."""
    if settings.batch_size < n_devices:
        raise ValueError(
            f"batch_size={settings.batch_size} is too small for {n_devices} devices: each device "
            f"needs an image of every batch. Set batch_size to {2 * n_devices} or more, or lower "
            "devices."
        )


def check_sizes(settings: Settings, facts: Facts) -> None:
    """Check that K fits the number of samples, and that the sizes of views and images fit.

    Raises
    ------
    ValueError
        If there is only one sample, if K exceeds the number of samples, if local views are larger
        than global views, or if global views would enlarge the images more than four times.
    """
    K, n_samples = settings.K, facts.n_samples
    if n_samples < 2:
        raise ValueError("X holds one sample, but clustering needs at least two. Pass more.")
    if n_samples < K:
        raise ValueError(
            f"K={K} exceeds n_samples={n_samples}, but each cluster needs at least one sample. "
            'Lower K, or leave K="auto".'
        )
    if facts.kind == "rows":
        return
    image_size, local_size = settings.image_size, settings.local_size
    if settings.n_local and local_size > image_size and not settings.freeze_backbone:
        raise ValueError(
            f"local_size={local_size} exceeds image_size={image_size}, but local views must not be "
            'larger than global views. Lower local_size, or leave local_size="auto".'
        )
    largest = MOST_ENLARGED * max(8, facts.short_side)
    if image_size > largest:
        raise ValueError(
            f"image_size={image_size} would enlarge images of {facts.short_side} pixels more than "
            f'four times. Lower image_size to {largest} or less, or leave image_size="auto".'
        )


def check_columns(X: Any) -> None:
    """Check that all columns of a data frame are numeric.

    Raises
    ------
    ValueError
        If X is a data frame with other columns. The message names them.
    """
    kinds = getattr(X, "dtypes", None)
    if not hasattr(X, "columns") or kinds is None:
        return
    wrong = [
        str(column)
        for place, (column, kind) in enumerate(zip(X.columns, kinds, strict=True))
        if not _holds_numbers(X, place, kind)
    ]
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(
            f"X has columns that are not numeric: {shown}. Leave them out with "
            "X.drop(columns=...). If one of them names the rows, make it the index with "
            "X.set_index(...)."
        )


def _holds_numbers(X: Any, place: int, kind: Any) -> bool:
    """Whether a column can be converted to float; a column of objects can if all are numbers."""
    if getattr(kind, "kind", "f") in "Mm" or str(kind).lower().startswith(("date", "time", "dur")):
        return False
    named = getattr(kind, "kind", "f") in "OSU" or str(kind).lower().startswith(_NOT_NUMERIC)
    if not named:
        return True
    column = X.iloc[:, place] if hasattr(X, "iloc") else X[X.columns[place]]
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


_NOT_NUMERIC = ("object", "str", "utf8", "categ", "enum", "bin")  # types of pandas and polars


def check_out(
    out: npt.NDArray[Any] | None, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return the array for results: ``out`` if it can hold them, or a new array if it is None.

    Raises
    ------
    ValueError
        If ``out`` has another shape or type, or is read-only.
    """
    if out is None:
        return np.empty(shape, dtype=dtype)
    fits = isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype
    if not (fits and out.flags.writeable):
        came = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(
            f"out={came} cannot be used: it must be a writeable array of shape {shape} and dtype "
            f"{np.dtype(dtype)}, such as np.lib.format.open_memmap(path, 'w+', "
            f"'{np.dtype(dtype)}', {shape})."
        )
    return out
