"""The training loop: Algorithm 1 of the paper's supplementary, and the start of the centroids.

The loop yields a report after each step, and leaves logging to its caller.

Axes: ``G`` global and ``L`` local views, ``V = G + L``, ``B`` images, ``D`` dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

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
from sklearn_excb.training.step_draws import StepDraws
from sklearn_excb.views.batches import Batch

Draws = AbstractContextManager[Any]  # the generator that networks draw from

_GLOBAL: Draws = nullcontext()  # the global one of the process
_PRODUCTS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # dtype of each reduced precision


class Outcome(NamedTuple):
    """Results of a step before its update, over all ranks. The tensors stay on the device.

    Attributes
    ----------
    loss : Loss
        Loss of the step.
    labels, plain_labels : Tensors of shape (G, B)
        Labels of the teacher after and before balancing.
    entropies : Tensor of shape (2,)
        Entropies of teacher and student; see :func:`sklearn_excb.method.entropy.mean_entropies`.
    """

    loss: Loss
    labels: Tensor
    plain_labels: Tensor
    entropies: Tensor


class StepReport(NamedTuple):
    """Number of a step (from 0), its epoch (from 1), and its outcome."""

    step: int
    epoch: int
    outcome: Outcome


def split(batch: Batch, most: int, ranks: Ranks = ALONE) -> Iterator[tuple[list[Tensor], float]]:
    """Cut a batch into near-equal parts of at most ``most`` images, the same number on every rank.

    A batch of up to ``most`` images is one part, without a copy. No part is a single image, since
    BatchNorm needs two; a part of three images may be left instead.

    Yields
    ------
    groups : list of Tensors
        Views of the part.
    share : float
        Share of the part in the images of the step on all ranks.
    """
    needed = -(-ranks.most(batch.n_together) // most)
    n_parts = max(1, min(needed, ranks.fewest(batch.n_together) // 2))
    images = (group.unflatten(0, (-1, batch.n_images)) for group in batch.groups)
    cut = [of_kind.tensor_split(n_parts, dim=1) for of_kind in images]
    for part in zip(*cut, strict=True):
        yield [views.flatten(0, 1) for views in part], part[0].shape[1] / batch.n_together


def in_precision(settings: Settings, views: Tensor) -> torch.autocast:
    """Return a context in which matrix products run in the precision of the fit."""
    dtype = _PRODUCTS.get(settings.precision)
    # the cache of cast weights belongs to all threads: another fit would empty it half way
    return torch.autocast(views.device.type, dtype, enabled=dtype is not None, cache_enabled=False)


def _forward(
    networks: StudentTeacher,
    balancing: Balancing,
    groups: Sequence[Tensor],
    settings: Settings,
    temperature: float,
    gradient_memory: Tensor | None,
    ranks: Ranks,
    draws: Draws,
) -> Outcome:
    """Compute the loss of a batch, or of a part of it, for the backward pass."""
    student, teacher = networks.student, networks.teacher
    assert student.predictor is not None
    n_images = len(groups[0]) // settings.n_global

    with torch.no_grad(), in_precision(settings, groups[0]), draws:
        teacher_rows = teacher.project(groups[:1]).unflatten(0, (-1, n_images))  # (G, B, D)
    if balancing.needs_rows:
        seen = ranks.concatenate(teacher_rows, dim=1)
        balancing.observe(seen, teacher.centroids.weight, temperature)
    targets = teacher_targets(
        teacher_rows,
        teacher.centroids.weight,
        balancing.affine(),
        temperature=temperature,
    )
    with in_precision(settings, groups[0]):
        with draws:
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


def _combined(parts: Sequence[tuple[float, Outcome]], n_together: int, ranks: Ranks) -> Outcome:
    """Combine the outcomes of the parts of a step on all ranks, weighted by their shares."""
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
    draws: Draws = _GLOBAL,
) -> Outcome:
    """Take one step of Algorithm 1; the rates of the optimiser are already set.

    Parameters
    ----------
    networks : StudentTeacher
        Networks on the device of the batch; changed in place.
    balancing : Balancing
        Balancing method; updated in place by the labels of the step.
    optimizer : Optimizer
        Optimiser of the student, from :func:`build_optimizer`.
    batch : Batch
        Views of the images. A step handles them in parts of ``settings.micro_batch`` images. The
        gradients of the parts add up to those of the whole batch, but BatchNorm sees one part only.
    settings : Settings
        Settings of the fit.
    rates : TeacherRates
        Momentum and temperature of the teacher in this step.
    ranks : Ranks, default=ALONE
        Ranks that take the step together, each with its share of the images.
    scaler : GradScaler, optional
        Scaler of the loss, from :func:`build_scaler`. If gradients overflow, the student does not
        change.
    draws : context manager, optional
        Generator that the networks draw from.

    Returns
    -------
    Outcome
        Outcome of all ranks, before the update.
    """
    memory = networks.student.centroids.weight.grad  # the next gradient reuses this memory
    optimizer.zero_grad()
    parts: list[tuple[float, Outcome]] = []
    for part, share in split(batch, settings.micro_batch, ranks):
        outcome = _forward(
            networks, balancing, part, settings, rates.temperature, memory, ranks, draws
        )
        memory = None  # only autograd holds the memory now, which becomes .grad without a copy
        scaler.scale(share * outcome.loss.total).backward()
        losses = Loss(*(term.detach() for term in outcome.loss))
        parts.append((share, outcome._replace(loss=losses)))
    ranks.sum_each(p.grad for p in networks.student.parameters() if p.grad is not None)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()

    networks.update_teacher(rates.momentum)
    outcome = _combined(parts, batch.n_together, ranks)
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
        Networks on the device of the batches; changed in place.
    balancing : Balancing
        Balancing method; changed in place.
    optimizer : Optimizer
        Optimiser of the student, from :func:`build_optimizer`.
    batches : iterable of Batch
        Batches of the run from ``first_step`` on, in order.
    settings : Settings
        Settings of the fit.
    plan : Plan
        Length of the run.
    seed : int
        Seed of dropout and drop path. The randomness of a step is a function of (seed, step, rank).
    first_step : int, default=0
        Number of steps taken before.
    ranks : Ranks, default=ALONE
        Ranks that train together.
    scaler : GradScaler, optional
        Scaler of the loss; changed in place.

    Yields
    ------
    StepReport
        Report of each step, after the networks have changed.
    """
    networks.train_mode()
    step_draws = StepDraws(networks.student.backbone)
    for step, batch in enumerate(batches, first_step):
        of_step = [seed, step] if ranks.first else [seed, step, ranks.rank]
        set_rates(optimizer, settings, step, plan)
        rates = TeacherRates.of(settings, step, plan)
        with step_draws.seeded(of_step) as draws, synchronized_batch_norm(ranks):
            outcome = train_step(
                networks, balancing, optimizer, batch, settings, rates, ranks, scaler, draws
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
    draws: Draws = _GLOBAL,
) -> None:
    """Set the centroids by spherical k-means on projections of one global view.

    The network is in training mode, since a fresh network gives other features in evaluation mode.
    The pass also initialises the running statistics of the teacher's BatchNorm, for inference.

    Parameters
    ----------
    networks : StudentTeacher
        Networks of the fit; changed in place.
    batches : iterable of Batch
        One epoch of one global view; :func:`most_start_rows` images of it are used.
    settings : Settings
        Settings of the fit.
    seed : int
        Seed of the choice of the first centroids.
    ranks : Ranks, default=ALONE
        Ranks that share the batches, and the rows that k-means clusters.
    draws : context manager, optional
        Generator that the networks draw from, for dropout.
    """
    networks.train_mode()
    rows: list[Tensor] = []
    places: list[npt.NDArray[np.int64]] = []
    seen, wanted = 0, most_start_rows(settings.K)
    for batch in ranks.zip_ranks(batches):
        with synchronized_batch_norm(ranks), draws:
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
        n_starts=settings.n_starts,
        ranks=ranks,
        places=np.concatenate(places),
        device=networks.teacher.centroids.weight.device,
    )
    networks.teacher.centroids.weight.copy_(torch.from_numpy(start.unit))
    networks.student.centroids.weight.copy_(torch.from_numpy(start.means))


def _concatenate_and_free(rows: list[Tensor]) -> Tensor:
    """Concatenate tensors and clear the list, to free their memory."""
    together = torch.cat(rows)
    rows.clear()
    return together
