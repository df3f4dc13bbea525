"""DINO and SwAV with the heads and losses of lightly, for an independent comparison.

The methods use the backbone, views, number of images, optimiser, schedules and precision of ExCB.
Heads, prototypes and losses are lightly's, with the values of the papers. Prototypes have the
weight decay of other weights; the centroids of ExCB start with ten times as much.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss, SwaVLoss
from lightly.models.modules.heads import (
    DINOProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from torch import Tensor, nn

from benchmarks.data_sets import Split
from benchmarks.figures import Outcome
from sklearn_excb import ExCBEstimator
from sklearn_excb.data import open_source as images
from sklearn_excb.runtime.devices import resolve_precision
from sklearn_excb.runtime.process_state import seeded_generators
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import build, facts_of, view_recipe
from sklearn_excb.training.loop import in_precision
from sklearn_excb.training.optimizer import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch, ViewBatches
from sklearn_excb.views.whole_images import inference_inputs

DEVICE = torch.device("cpu")
QUEUE_STARTS = 15 / 400  # share of the run before the queue starts, as in the paper


class DINO(nn.Module):
    """A student and a teacher with lightly's head and loss.

    Parameters
    ----------
    backbone : nn.Module
        Backbone of the student.
    n_features : int
        Number of features of the backbone.
    settings : Settings
        Settings of ExCB, resolved from its defaults.
    """

    def __init__(self, backbone: nn.Module, n_features: int, settings: Settings) -> None:
        super().__init__()
        self.backbone = backbone
        self.head, self.teacher_head = (
            DINOProjectionHead(
                n_features,
                settings.head_width,
                256,
                settings.K,
                batch_norm=settings.optimizer == "sgd",  # as the authors do with ResNets
                freeze_last_layer=1,
            )
            for _ in range(2)
        )
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.teacher_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.criterion = DINOLoss(settings.K)
        self.settings = settings

    def loss(
        self, groups: Sequence[Tensor], n_images: int, rates: TeacherRates, position: float
    ) -> Tensor:
        """Return the cross-entropy over all pairs of views."""
        with torch.no_grad():
            teacher = self._logits(self.teacher_backbone, self.teacher_head, groups[:1])
        student = self._logits(self.backbone, self.head, groups)
        views = list(teacher.split(n_images)), list(student.split(n_images))
        return self.criterion(*views, teacher_temp=rates.temperature)

    def _logits(
        self, backbone: nn.Module, head: DINOProjectionHead, groups: Sequence[Tensor]
    ) -> Tensor:
        """Return the similarities in float32, as in ExCB."""
        with in_precision(self.settings, groups[0]):
            rows = head.layers(torch.cat([backbone(group) for group in groups]))
        return head.last_layer(F.normalize(rows.float(), dim=-1))

    def after_backward(self, epoch: int) -> None:
        """Freeze the last layer in the first epoch."""
        self.head.cancel_last_layer_gradients(epoch)

    @torch.no_grad()
    def after_step(self, rates: TeacherRates) -> None:
        """Update the teacher."""
        for slow, fast in (
            (self.teacher_backbone, self.backbone),
            (self.teacher_head, self.head),
        ):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - rates.momentum)

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, unit projections and similarities of the teacher."""
        features = self.teacher_backbone(x)
        projection = F.normalize(self.teacher_head.layers(features), dim=-1)
        return features, projection, self.teacher_head.last_layer(projection)


class SwAV(nn.Module):
    """One network with lightly's head, prototypes and loss, and a queue.

    Parameters
    ----------
    backbone, n_features, settings
        Parameters as for :class:`DINO`.
    """

    def __init__(self, backbone: nn.Module, n_features: int, settings: Settings) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = SwaVProjectionHead(n_features, settings.head_width, 128)
        self.prototypes = SwaVPrototypes(128, settings.K)
        for layer in self.prototypes.heads:  # similarities are cosines in the paper
            nn.init.zeros_(layer.bias).requires_grad_(False)
        self.criterion = SwaVLoss(sinkhorn_epsilon=settings.teacher_temperature[1])
        # 3,840 rows for 3,000 prototypes in the paper
        self.n_queued = -(-round(1.28 * settings.K) // settings.batch_size) * settings.batch_size
        self.queue: list[list[Tensor]] = [[] for _ in range(settings.n_global)]
        self.settings = settings

    def loss(
        self, groups: Sequence[Tensor], n_images: int, rates: TeacherRates, position: float
    ) -> Tensor:
        """Return the loss of swapped prediction between global views, and from local views."""
        self.prototypes.normalize()
        with in_precision(self.settings, groups[0]):
            features = self.head(torch.cat([self.backbone(group) for group in groups]))
        rows = F.normalize(features.float(), dim=-1)
        similarity = self.prototypes(rows).split(n_images)
        n_global = self.settings.n_global
        queued = None
        if position >= QUEUE_STARTS and len(self.queue[0]) * n_images >= self.n_queued:
            with torch.no_grad():
                queued = [self.prototypes(torch.cat(queue)) for queue in self.queue]
        for queue, view in zip(self.queue, rows.detach().split(n_images), strict=False):
            queue.insert(0, view)
            del queue[self.n_queued // n_images :]
        return self.criterion(list(similarity[:n_global]), list(similarity[n_global:]), queued)

    def after_backward(self, epoch: int) -> None:
        """Freeze the prototypes in the first epoch."""
        if epoch == 0:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    def after_step(self, rates: TeacherRates) -> None:
        """Do nothing: SwAV has no teacher."""

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, unit projections and similarities."""
        features = self.backbone(x)
        projection = F.normalize(self.head(features), dim=-1)
        return features, projection, self.prototypes(projection)


METHODS = {"lightly DINO": DINO, "lightly DINO, slower teacher": DINO, "lightly SwAV": SwAV}
Method = type[DINO] | type[SwAV]


def fit(
    method: Method, split: Split, seed: int, excb: ExCBEstimator
) -> tuple[Settings, Outcome, list[dict[str, Any]]]:
    """Train a method for as many epochs as ExCB, and apply it.

    Parameters
    ----------
    method : type
        One of METHODS, or another class with the same methods.
    split : Split
        Training and held-out images.
    seed : int
        Seed of weights and views.
    excb : ExCBEstimator
        Estimator whose parameters are used.

    Returns
    -------
    settings : Settings
        Resolved settings of the training.
    outcome : Outcome
        Labels, projections and features.
    history : list of dict
        Mean loss of each epoch.
    """
    source, held_out = (images.open_source(X, None) for X in (split.train, split.test))
    with seeded_generators(seed):
        networks, settings, n_features = build(excb.get_params(deep=False), facts_of(source))
        precision = resolve_precision(settings.precision, DEVICE)
        settings = dataclasses.replace(settings, precision=precision)
        model = method(networks.student.backbone, n_features, settings)
        recipe = view_recipe(source, settings)
        n_jobs = 2 if source.reads_in_parallel else 1
        batches = ViewBatches(
            source, recipe, settings.batch_size, settings.epochs, seed, n_jobs, DEVICE
        )
        history = _train(model, batches, settings)
        applied = [
            _apply(model, inference_inputs(s, recipe, batch_size=256, n_jobs=n_jobs, device=DEVICE))
            for s in (source, held_out)
        ]
    features, projections, similarity = zip(*applied, strict=True)
    labels = similarity[0].argmax(axis=1), similarity[1].argmax(axis=1)
    return settings, Outcome(labels, projections, features), history


def _train(model: DINO | SwAV, batches: ViewBatches, settings: Settings) -> list[dict[str, Any]]:
    model.train()
    plan = Plan.of(settings, len(batches.source))
    optimizer = build_optimizer(model, settings)
    losses: list[list[float]] = [[] for _ in range(settings.epochs)]
    batch: Batch
    for step, batch in enumerate(batches):
        set_rates(optimizer, settings, step, plan)
        rates = TeacherRates.of(settings, step, plan)
        loss = model.loss(batch.groups, batch.n_images, rates, step / plan.total_steps)
        optimizer.zero_grad()
        loss.backward()
        model.after_backward(batch.epoch - 1)
        optimizer.step()
        model.after_step(rates)
        losses[batch.epoch - 1].append(loss.item())
    return [{"epoch": i, "loss": float(np.mean(of))} for i, of in enumerate(losses, 1)]


@torch.no_grad()
def _apply(model: DINO | SwAV, inputs: Any) -> tuple[np.ndarray, ...]:
    model.eval()
    parts = [model.outputs(x) for x in inputs]
    return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))
