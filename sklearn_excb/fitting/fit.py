"""A fit, from the first sample to the last label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sklearn_excb.data.sources import Source
from sklearn_excb.fitting.checkpoints import open_checkpoints
from sklearn_excb.fitting.epochs import train_run
from sklearn_excb.fitting.memory.budget import resolve_micro_batch_together
from sklearn_excb.fitting.run import Run
from sklearn_excb.fitting.training_data import TrainingData
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.runtime.process_state import (
    generator_states,
    preserved_generators,
    resumed_generators,
)
from sklearn_excb.runtime.progress import progress_bar
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.settings.validation import check_devices
from sklearn_excb.storage.packing import Snapshot
from sklearn_excb.training.build import Model, prepare
from sklearn_excb.training.coarse_groups import group_centroids
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.final_labels import looked_at
from sklearn_excb.training.history import entry, filling
from sklearn_excb.training.loop import start_centroids
from sklearn_excb.training.settling import enough_to_settle, settle_teacher, settling_sample
from sklearn_excb.training.teacher_outputs import assign
from sklearn_excb.views.batches import Batches, ViewBatches

Labels = npt.NDArray[np.int64]
FeatureSums = npt.NDArray[np.float32]


def fit(data: TrainingData, context: FitContext) -> Fitted:
    """Fit a collection or a stream: open, resume, build, start, train, settle, label.

    ``partial_fit`` repeats these stages for each part of a stream, see
    :class:`sklearn_excb.fitting.partial_fit.OnlineFit`.

    Parameters
    ----------
    data : TrainingData
        Images or rows.
    context : FitContext
        Parameters, seed, device and ranks. Each rank calls this function and gets the same result.
        The first rank reads and writes checkpoints.

    Raises
    ------
    ValueError
        If parameters and data are incompatible, or a checkpoint belongs to another fit.
    DivergedError
        If the loss or a gradient is infinite or NaN in the first epoch.
    RankError
        If another rank fails, or runs a different fit.
    """
    with ExitStack() as stack:
        source = stack.enter_context(data.open(context))
        context, checkpoints = stack.enter_context(open_checkpoints(data.fingerprint, context))
        draws = PrivateGenerator(context.seed)
        model, views = build(source, data, context, draws)
        settings = model.settings
        bar = stack.enter_context(progress_bar(shown=context.shows_progress, unit="img"))
        run = Run.of(model.networks, settings, context.device, data.n_samples)
        resumes = checkpoints.restore(run, model, data.n_samples)
        batches = data.batches(model, views, bar, resumes=resumes)
        del source, views  # frees the images of a stream's first part
        trains, ending = resumes or settings.epochs > 0, "done"
        sums = np.zeros((settings.K, model.n_features), np.float32) if data.is_whole else None
        labels = np.empty(0, np.int64)
        if resumes and data.may_draw:
            stack.enter_context(resumed_generators(run.generators))
        if not resumes:
            labels = start(run, batches, model, context, draws, None if trains else sums)
        run.monitor.inputs = partial(some_inputs, batches, settings, data.may_draw)
        if trains:
            ending = train_run(run, batches, model, context, checkpoints, bar)
        state = checkpoints.state(run, ending)
        if trains:
            run.release()
            bar.set_description("ExCB: assigning samples to clusters")
            if resumes and ending == "done":
                ending = data.refill(batches, settings)
            labels = settle_and_label(run, batches, model, context, sums)
            if ending == "done":
                run.monitor.check(run.history[-1])
        run.monitor.check_labels(labels, run.step)
        data.close(context.ranks)
    return result(model, run, context, labels, sums, state=state, stopped=ending == "stopped")


def build(
    source: Source, data: TrainingData, context: FitContext, draws: PrivateGenerator
) -> tuple[Model, ViewBatches]:
    """Resolve the parameters and build the networks on the device, the same on every rank."""
    ranks = context.ranks
    model, views = prepare(source, context, data.n_samples, draws, is_whole=data.is_whole)
    networks, settings = model.networks, model.settings
    check_devices(settings, ranks.count)
    settings = resolve_micro_batch_together(networks, settings, views, context)
    networks.to(context.device)
    ranks.broadcast_(tensor.detach() for tensor in networks.state_dict().values())
    return replace(model, settings=settings), views


def start(
    run: Run,
    batches: Batches,
    model: Model,
    context: FitContext,
    draws: PrivateGenerator,
    sums: FeatureSums | None,
) -> Labels:
    """Compute the first centroids, and label a collection with the untrained network."""
    start_centroids(
        model.networks,
        batches.start(),
        model.settings,
        seed=context.seed,
        ranks=context.ranks,
        draws=draws,
    )
    labels = label(batches, model, sums)
    inference = labels if len(labels) else None
    run.history.append(entry(0, inference=inference, n_clusters=model.settings.K))
    run.generators = generator_states()
    return labels


def label(batches: Batches, model: Model, sums: FeatureSums | None = None) -> Labels:
    """Label every kept sample by plain inference with the teacher, on all ranks together.

    Parameters
    ----------
    batches : Batches
        All samples of a collection, or the kept sample of a stream.
    model : Model
        Teacher and settings.
    sums : ndarray of shape (K, d), optional
        Sum of the backbone's features in each cluster. The features are added to it.
    """
    samples, ranks = np.arange(batches.n_kept()), batches.ranks
    mine, labels = ranks.span(len(samples)), np.zeros_like(samples)
    inputs = batches.whole(model.settings.inference_batch, samples[mine])
    with ranks.together():
        assign(model.networks.teacher, inputs, out=labels[mine], sums=sums)
    if sums is not None:
        ranks.sum_array(sums)
    return ranks.sum_array(labels)


def some_inputs(batches: Batches, settings: Settings, may_draw: bool) -> Iterator[Tensor]:
    """Yield some of this rank's kept samples, and restore generators that they may draw from."""
    n = batches.n_kept()
    with preserved_generators(if_drawn=may_draw):
        mine = looked_at(np.arange(n)[batches.ranks.span(n)])
        yield from batches.whole(settings.inference_batch, mine)


def settle_and_label(
    run: Run, batches: Batches, model: Model, context: FitContext, sums: FeatureSums | None
) -> Labels:
    """Let the centroids settle, label the samples, and add both occupancies to the history."""
    n, settings, ranks = batches.n_kept(), model.settings, context.ranks
    if not n:
        return np.empty(0, np.int64)
    before = None
    if settings.settle_passes and (sums is not None or enough_to_settle(settings, n)):
        sample = settling_sample(n, settings.K)
        before = settle_teacher(
            model.networks.teacher,
            batches.whole(settings.inference_batch, sample[ranks.span(len(sample))]),
            settings,
            n_samples=len(sample),
            seed=context.seed,
            ranks=ranks,
        )
    labels = label(batches, model, sums)
    run.history[-1] |= filling(labels, settings.K)
    run.history[-1] |= filling(labels if before is None else before, settings.K, "_unsettled")
    return labels


def result(
    model: Model,
    run: Run,
    context: FitContext,
    labels: Labels,
    sums: FeatureSums | None,
    *,
    state: Snapshot | None,
    stopped: bool,
) -> Fitted:
    """Collect the result of a fit. A stream has neither labels nor group centroids."""
    teacher, settings, groups = model.networks.teacher.cpu().eval(), model.settings, None
    if sums is not None:
        unit = teacher.centroids.unit().detach().numpy()
        groups = group_centroids(sums, labels, unit, directions=settings.has_backbone)
    return Fitted(
        teacher=teacher,
        settings=settings,
        recipe=model.recipe,
        n_backbone_features=model.n_features,
        image_shape=model.facts.shape,
        labels=np.empty(0, np.int64) if sums is None else labels,
        history=run.history,
        group_centroids=groups,
        seed=context.seed,
        state=state,
        stopped=stopped,
    )
