"""DINO and SwAV with the losses of solo-learn, for another independent comparison.

    pip install --no-deps solo-learn==1.0.2

The release on PyPI needs versions of torch and lightning from 2021. This module therefore loads
only the files of the losses, which need only torch. The losses use global views and no local views.
Heads, prototypes and the queue are lightly's (:mod:`benchmarks.lightly_methods`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import lightly_methods
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.optimizer import TeacherRates


def _file(name: str) -> ModuleType:
    """Load a module of solo-learn without its package."""
    package = importlib.util.find_spec("solo")
    if package is None or not package.submodule_search_locations:
        raise ImportError(
            "solo-learn is not installed. Install it with: pip install --no-deps solo-learn==1.0.2"
        )
    path = Path(package.submodule_search_locations[0], *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"solo_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _DINOLoss(nn.Module):
    """Loss of solo-learn, with the signature of lightly's loss."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        temperature = settings.teacher_temperature[1]
        self.loss = _file("losses.dino").DINOLoss(
            settings.K,
            temperature,
            temperature,
            warmup_teacher_temp_epochs=0,
            num_epochs=1,
            student_temp=settings.student_temperature,
        )

    def forward(
        self, teacher: Sequence[Tensor], student: Sequence[Tensor], teacher_temp: float
    ) -> Tensor:
        return self.loss(torch.cat([*student]), torch.cat([*teacher]))


class _SwAVLoss(nn.Module):
    """Loss of solo-learn, with the signature of lightly's loss."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.temperature = settings.student_temperature
        self.swav_loss = _file("losses.swav").swav_loss_func
        self.sinkhorn = _file("utils.sinkhorn_knopp").SinkhornKnopp(
            epsilon=settings.teacher_temperature[1]
        )

    def forward(self, views: list[Tensor], none: list[Tensor], queued: Any) -> Tensor:
        rows = [torch.cat(both) for both in zip(views, queued, strict=True)] if queued else views
        assignments = [self.sinkhorn(each.detach())[: len(views[0])] for each in rows]
        return self.swav_loss(views, assignments, self.temperature)


class DINO(lightly_methods.DINO):
    """A student and a teacher, with solo-learn's loss."""

    def __init__(self, backbone: nn.Module, n_features: int, settings: Settings) -> None:
        super().__init__(backbone, n_features, settings)
        self.criterion = _DINOLoss(settings)

    def loss(
        self, groups: Sequence[Tensor], n_images: int, rates: TeacherRates, position: float
    ) -> Tensor:
        """Return the loss as lightly's methods do, for global views only."""
        return super().loss(groups[:1], n_images, rates, position)


class SwAV(lightly_methods.SwAV):
    """One network, with solo-learn's loss and assignments."""

    def __init__(self, backbone: nn.Module, n_features: int, settings: Settings) -> None:
        super().__init__(backbone, n_features, settings)
        self.criterion = _SwAVLoss(settings)

    def loss(
        self, groups: Sequence[Tensor], n_images: int, rates: TeacherRates, position: float
    ) -> Tensor:
        """Return the loss as lightly's methods do, for global views only."""
        return super().loss(groups[:1], n_images, rates, position)


METHODS = {"solo-learn DINO": DINO, "solo-learn SwAV": SwAV}
