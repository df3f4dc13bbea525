"""Validation of the estimator's parameters. All checks happen here, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sklearn_excb.settings.auto_rules import MOST_ENLARGED
from sklearn_excb.settings.resolve import Facts, Settings

CHECKPOINT_PARAMETERS = frozenset(
    ("checkpoint_dir", "checkpoint_every", "n_checkpoints", "resume", "warm_start")
)

Check = Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _integer(low: int, high: int) -> tuple[Check, str]:
    def check(value: Any) -> bool:
        return _is_integer(value) and low <= value <= high

    return check, f"an integer >= {low} and <= {high}"


def _real(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Any:
    def check(value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        try:
            number = float(value)
        except OverflowError:  # of an integer or a fraction
            return False
        above = number > low if open_low else number >= low
        return above and (number < high if open_high else number <= high)

    left, right = "[("[open_low], "])"[open_high]
    return check, f"a number in {left}{low:g}, {high:g}{right}"


def _options(*names: str) -> tuple[Check, str]:
    def check(value: Any) -> bool:
        return isinstance(value, str) and value in names

    return check, f"one of {', '.join(map(repr, names))}"


def _one_or_two(of_each: tuple[Check, str]) -> tuple[Check, str]:
    check, needed = of_each

    def check_each(value: Any) -> bool:
        values = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value,)
        return all(map(check, values))

    return check_each, f"{needed}, or a pair of them: the first and the last value"


_COUNT = 2**31 - 1  # highest count that every library below takes
_WIDTH = 2**16  # highest width of a layer: a square one takes 17 GB
_SIDE = 2**15  # highest side of a view, in pixels
_VIEWS = 1000  # highest number of views of an image
_JOBS = 4096  # highest number of threads
_RATE = 1e30  # highest rate of a step: far above any that converges, and within single precision
_DECAY = 1e6  # highest decay: any that is higher is all that a step does
_TEMPERATURE = 1e-6, 1e6  # any other is the limit itself: certain or uniform
_CONSTRAINTS: dict[str, tuple[Check, str]] = {
    "K": _integer(2, _COUNT),
    "backbone": (
        lambda value: isinstance(value, (str, nn.Module)),
        "the name of a model or an nn.Module",
    ),
    "pretrained": (
        lambda value: isinstance(value, (bool, str, os.PathLike)) and value != "",
        "True, False or the path of a file of weights",
    ),
    "freeze_backbone": (lambda value: isinstance(value, bool), "True or False"),
    "embedding": _options("projection", "backbone", "similarity"),
    "image_size": _integer(8, _SIDE),
    "local_size": _integer(8, _SIDE),
    "n_global": _integer(2, _VIEWS),
    "n_local": _integer(0, _VIEWS),
    "n_channels": _integer(1, _COUNT),
    "flip": _real(0, 1),
    "epochs": _integer(0, _COUNT),
    "batch_size": _integer(2, _COUNT),
    "steps_per_epoch": _integer(1, _COUNT),
    "micro_batch": (
        lambda value: value is None or (_is_integer(value) and 2 <= value <= _COUNT),
        f"None or an integer >= 2 and <= {_COUNT}",
    ),
    "precision": _options("32", "bf16", "fp16"),
    "compile": (lambda value: isinstance(value, bool), "True or False"),
    "optimizer": _options("sgd", "adamw"),
    "learning_rate": _real(0, _RATE, open_low=True),
    "weight_decay": _one_or_two(_real(0, _DECAY)),
    "warmup_epochs": _real(0, _COUNT),
    "teacher_momentum": _real(0, 1),
    "size_momentum": _real(0, 1, open_high=True),
    "teacher_temperature": _one_or_two(_real(*_TEMPERATURE)),
    "student_temperature": _real(*_TEMPERATURE),
    "balancing": _options("linear", "exponential", "centering", "sinkhorn", "none"),
    "count_labels": _options("balanced", "plain"),
    "settle_passes": _integer(0, _COUNT),
    "local_in_loss_h": (lambda value: isinstance(value, bool), "True or False"),
    "on_error": _options("raise", "skip"),
    "devices": _integer(1, _COUNT),
    "n_jobs": (
        lambda value: value is None or (_is_integer(value) and 0 < abs(value) <= _JOBS),
        f"None or an integer other than 0, from -{_JOBS} to {_JOBS}",
    ),
    "head_width": _integer(1, _WIDTH),
    "device": (
        lambda value: isinstance(value, (str, torch.device)),
        "the name of a device or a torch.device",
    ),
    "checkpoint_dir": (
        lambda value: value is None or isinstance(value, (str, os.PathLike)),
        "None or a path",
    ),
    "checkpoint_every": _integer(1, _COUNT),
    "n_checkpoints": _integer(1, _COUNT),
    "resume": (lambda value: isinstance(value, bool), "True or False"),
    "warm_start": (lambda value: isinstance(value, bool), "True or False"),
    "verbose": (lambda value: isinstance(value, (bool, Integral)), "an integer"),
    "random_state": (
        lambda value: (
            value is None
            or value is np.random
            or isinstance(value, np.random.RandomState)
            or (_is_integer(value) and 0 <= value < 2**32)
        ),
        f"None, an integer >= 0 and <= {2**32 - 1}, or a RandomState",
    ),
}
_NOT_AUTO = frozenset(
    name
    for name in _CONSTRAINTS
    if name.endswith("_temperature")
    or name in {"embedding", "n_global", "local_in_loss_h", "compile", "verbose", "random_state"}
    or name in {"pretrained", "freeze_backbone"}
    or name in {"balancing", "count_labels", "on_error"}
    or name in {"checkpoint_dir", "n_checkpoints", "warm_start"}
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
    for name, (check, needed) in _CONSTRAINTS.items():
        value = parameters[name]
        auto = name not in _NOT_AUTO
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
