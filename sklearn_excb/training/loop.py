"""The one loop: Algorithm 1 of the seed, and the start that precedes it. [METHOD.md 4 to 6]

Axes: ``G`` global and ``L`` local views, ``V = G + L``, ``B`` images, ``D`` dimensions.
The loop yields a report a step; whoever runs it logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sklearn_excb.method.balancing import Balancing
from sklearn_excb.method.entropy import mean_entropies
from sklearn_excb.method.kmeans import most_start_rows, spherical_kmeans
from sklearn_excb.method.loss import Loss, excb_loss, teacher_targets
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.networks.sync_batch_norm import synchronized_batch_norm
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.optimizer import UNSCALED, Plan, TeacherRates, set_rates
from sklearn_excb.views.batches import Batch

_PRODUCTS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by the precision of the fit


class Outcome(NamedTuple):
    """What a step found, before its update, on all ranks; tensors stay on the device.

    Attributes
    ----------
    loss : Loss
    labels, plain_labels : Tensors of shape (G, B)
        The teacher's, after and before balancing.
    entropies : Tensor of shape (2,)
        The teacher's and the student's; see :func:`sklearn_excb.method.entropy.mean_entropies`.
    """

    loss: Loss
    labels: Tensor
    plain_labels: Tensor
    entropies: Tensor


class StepReport(NamedTuple):
    """A step, counted from 0, its epoch, from 1, and what it found."""

    step: int
    epoch: int
    outcome: Outcome


def split(batch: Batch, most: int, ranks: Ranks = ALONE) -> Iterator[tuple[list[Tensor], float]]:
    """Cut a batch into near-equal parts of at most ``most`` images, on every rank as many.

    A batch that is not larger is its only part, without a copy. No part is a single image, of which
    BatchNorm could make nothing: rather one of three is left.

    Yields
    ------
    groups : list of Tensors
        Views of a part.
    share : float
        Of it in the images of the step, those of all ranks together.
    """
    needed = -(-ranks.most(batch.n_together) // most)
    n_parts = max(1, min(needed, ranks.fewest(batch.n_together) // 2))
    images = (group.unflatten(0, (-1, batch.n_images)) for group in batch.groups)
    cut = [of_kind.tensor_split(n_parts, dim=1) for of_kind in images]
    for part in zip(*cut, strict=True):
        yield [views.flatten(0, 1) for views in part], part[0].shape[1] / batch.n_together


def in_precision(settings: Settings, views: Tensor) -> torch.autocast:
    """Matrix products inside run in the precision of the fit."""
    dtype = _PRODUCTS.get(settings.precision)
    return torch.autocast(views.device.type, dtype, enabled=dtype is not None)


def _forward(
    networks: StudentTeacher,
    balancing: Balancing,
    groups: Sequence[Tensor],
    settings: Settings,
    temperature: float,
    gradient_memory: Tensor | None,
    ranks: Ranks,
) -> Outcome:
    """Loss of a batch, or of a part of it, ready for its backward pass."""
    student, teacher = networks.student, networks.teacher
    assert student.predictor is not None
    n_images = len(groups[0]) // settings.n_global

    with torch.no_grad(), in_precision(settings, groups[0]):
        teacher_rows = teacher.project(groups[:1]).unflatten(0, (-1, n_images))  # (G, B, D)
    if balancing.sees_rows:
        seen = ranks.concatenate(teacher_rows, dim=1)
        balancing.see(seen, teacher.centroids.weight, temperature)
    targets = teacher_targets(
        teacher_rows,
        teacher.centroids.weight,
        balancing.affine(),
        temperature=temperature,
    )
    with in_precision(settings, groups[0]):
        rows = student.project(groups)  # (V * B, D)
        projections = rows.unflatten(0, (-1, n_images))
        loss = excb_loss(
            targets,
            projections,
            student.predictor(rows).unflatten(0, (-1, n_images)),
            student.centroids.weight,
            temperature=settings.student_temperature,
            local_in_projector_loss=settings.local_in_loss_h,
            gradient_memory=gradient_memory,
        )
    entropies = mean_entropies(
        targets,
        projections,
        student.centroids.weight,
        temperature=settings.student_temperature,
    )
    return Outcome(loss, targets.labels, targets.plain_labels, entropies)


def _joined(parts: Sequence[tuple[float, Outcome]], n_together: int, ranks: Ranks) -> Outcome:
    """What the parts of a step found, each by its share of the images, on all ranks."""
    shares, found = zip(*parts, strict=True)

    def mean(values: Iterable[Tensor]) -> Tensor:
        return torch.stack([share * v for share, v in zip(shares, values, strict=True)]).sum(dim=0)

    loss = [mean(terms) for terms in zip(*(part.loss for part in found), strict=True)]
    entropies = mean(part.entropies for part in found)
    means = ranks.sum_(torch.stack([*loss, *entropies]))
    labels = torch.cat([torch.stack([of.labels, of.plain_labels]) for of in found], dim=2)
    labels = ranks.concatenate_spans(labels, n_together, dim=2)  # (2, G, B)
    return Outcome(Loss(*means[:3]), labels[0], labels[1], entropies=means[3:])


def train_step(
    networks: StudentTeacher,
    balancing: Balancing,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: Settings,
    rates: TeacherRates,
    ranks: Ranks = ALONE,
    scaler: GradScaler = UNSCALED,
) -> Outcome:
    """One step of Algorithm 1; the rates of the optimiser are already set.

    Parameters
    ----------
    networks : StudentTeacher
        On the device of the batch; changed in place.
    balancing : Balancing
        Changed in place, by the labels of the step.
    optimizer : Optimizer
        Of the student, from :func:`build_optimizer`.
    batch : Batch
        In parts of ``settings.micro_batch`` images their gradients add up to those of the whole
        batch, but BatchNorm sees a part only.
    settings : Settings
        Of the fit.
    rates : TeacherRates
        Momentum and temperature of the teacher in this step.
    ranks : Ranks, default=ALONE
        Each with its share of the images; what comes out is the step of all of them together.
    scaler : GradScaler, optional
        Of :func:`build_scaler`. Where gradients overflow the student stays as it was.

    Returns
    -------
    Outcome
        Of all ranks, before the update.
    """
    memory = networks.student.centroids.weight.grad  # the old gradient's takes the next one
    optimizer.zero_grad()
    parts: list[tuple[float, Outcome]] = []
    for part, share in split(batch, settings.micro_batch, ranks):
        outcome = _forward(networks, balancing, part, settings, rates.temperature, memory, ranks)
        memory = None  # held by autograd alone, it becomes .grad without a copy
        scaler.scale(share * outcome.loss.total).backward()
        losses = Loss(*(term.detach() for term in outcome.loss))
        parts.append((share, outcome._replace(loss=losses)))
    ranks.sum_each(p.grad for p in networks.student.parameters() if p.grad is not None)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()

    networks.update_teacher(rates.momentum)
    outcome = _joined(parts, batch.n_together, ranks)
    balanced = settings.count_labels == "balanced"
    balancing.update(outcome.labels if balanced else outcome.plain_labels)
    return outcome


def train(
    networks: StudentTeacher,
    balancing: Balancing,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    settings: Settings,
    plan: Plan,
    *,
    seed: int,
    first_step: int = 0,
    ranks: Ranks = ALONE,
    scaler: GradScaler = UNSCALED,
) -> Iterator[StepReport]:
    """Run Algorithm 1 over the batches, yielding after each step.

    Parameters
    ----------
    networks : StudentTeacher
        On the device of the batches; changed in place.
    balancing : Balancing
        Changed in place.
    optimizer : Optimizer
        Of the student, from :func:`build_optimizer`.
    batches : iterable of Batch
        Those of the run from ``first_step`` on, in order.
    settings : Settings
        Of the fit.
    plan : Plan
        Length of the run.
    seed : int
        Of dropout and drop path; each step's randomness is a function of (seed, step, rank).
    first_step : int, default=0
        Steps that were taken before.
    ranks : Ranks, default=ALONE
        Those that train together.
    scaler : GradScaler, optional
        Changed in place.

    Yields
    ------
    StepReport
        Of each step, once the networks are changed.
    """
    networks.fitting()
    for step, batch in enumerate(batches, first_step):
        of = [seed, step] if ranks.first else [seed, step, ranks.rank]
        torch.manual_seed(int(np.random.SeedSequence(of).generate_state(1)[0]))
        set_rates(optimizer, settings, step, plan)
        rates = TeacherRates.of(settings, step, plan)
        with synchronized_batch_norm(ranks):
            outcome = train_step(
                networks, balancing, optimizer, batch, settings, rates, ranks, scaler
            )
        yield StepReport(step, batch.epoch, outcome)


@torch.no_grad()
def start_centroids(
    networks: StudentTeacher,
    batches: Iterable[Batch],
    settings: Settings,
    *,
    seed: int,
    ranks: Ranks = ALONE,
) -> None:
    """Set the centroids by spherical k-means on projections of one global view.

    The network is in training mode: evaluation-mode features of a fresh network lie elsewhere.
    The pass also warms the teacher's BatchNorm statistics, which inference uses.

    Parameters
    ----------
    networks : StudentTeacher
        Changed in place.
    batches : iterable of Batch
        One epoch of one global view, of which :func:`most_start_rows` images are used.
    settings : Settings
        Of the fit.
    seed : int
        Of the first centroids.
    ranks : Ranks, default=ALONE
        Each with its share of the batches, and then of the rows that k-means clusters.
    """
    networks.fitting()
    rows: list[Tensor] = []
    places: list[npt.NDArray[np.int64]] = []
    seen, wanted = 0, most_start_rows(settings.K)
    for batch in ranks.in_step(batches):
        with synchronized_batch_norm(ranks):
            for part, _ in split(batch, settings.micro_batch, ranks):
                rows.append(networks.teacher.project(part).float().cpu())
        places.append(seen + np.arange(batch.n_together)[ranks.span(batch.n_together)])
        seen += batch.n_together
        if seen >= wanted:
            break
    start = spherical_kmeans(
        _concatenate_and_free(rows).numpy(),
        settings.K,
        seed=seed,
        ranks=ranks,
        places=np.concatenate(places),
        device=networks.teacher.centroids.weight.device,
    )
    networks.teacher.centroids.weight.copy_(torch.from_numpy(start.unit))
    networks.student.centroids.weight.copy_(torch.from_numpy(start.means))


def _concatenate_and_free(rows: list[Tensor]) -> Tensor:
    """Concatenate tensors and let go of them."""
    together = torch.cat(rows)
    rows.clear()
    return together
