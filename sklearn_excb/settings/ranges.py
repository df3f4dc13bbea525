"""The range of each parameter of the estimator."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import nn

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
CONSTRAINTS: dict[str, tuple[Check, str]] = {
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
    "views": _options("crops", "neighbours", "neighbors", "noise"),
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
    "size_tolerance": _real(1, _RATE),
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
NOT_AUTO = frozenset(
    name
    for name in CONSTRAINTS
    if name.endswith("_temperature")
    or name in {"embedding", "n_global", "local_in_loss_h", "compile", "verbose", "random_state"}
    or name in {"pretrained", "freeze_backbone"}
    or name in {"balancing", "count_labels", "on_error"}
    or name in {"checkpoint_dir", "n_checkpoints", "warm_start"}
)
