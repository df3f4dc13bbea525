"""A fit of a stream that is too long to be kept: so many steps an epoch, each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb import auto
from sklearn_excb.beginning import begin, take_up_generators
from sklearn_excb.centroids import most_start_rows
from sklearn_excb.fitting import Fitted
from sklearn_excb.generators import generator_states
from sklearn_excb.history import entry, filling
from sklearn_excb.images import StreamPart, stream_parts
from sklearn_excb.inference import assign
from sklearn_excb.packing import Snapshot
from sklearn_excb.ranks import ALONE, Ranks
from sklearn_excb.reservoir import Reservoir
from sklearn_excb.settling import enough_to_settle, settle_teacher, settling_sample
from sklearn_excb.sources import Source
from sklearn_excb.stream_batches import StreamBatches
from sklearn_excb.training import start_centroids

_USUAL_BATCH = 256  # by which the length of the stream is guessed, to look up its batch size


def fit_stream(
    X: Iterable[Any],
    parameters: Mapping[str, Any],
    open_part: Callable[[StreamPart], Source],
    *,
    seed: int,
    device: torch.device,
    kept: Snapshot | None = None,
    fitted_before: bool = False,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Fit a stream, of which an epoch is ``steps_per_epoch`` batches.

    Parameters
    ----------
    X : iterable
        Of images. It is iterated again when it ends. Each rank has its own.
    open_part : callable
        From images of the stream to a source.
    parameters, seed, device, kept, fitted_before, ranks
        As of :func:`sklearn_excb.fitting.fit_source`.

    Raises
    ------
    ValueError
        If there is nothing in it, or it ends and gives nothing when it is iterated again.
    DivergedError
        If loss or gradients are not finite.
    RankError
        If another rank has failed, or is at another fit.
    """
    per_epoch, size = int(parameters["steps_per_epoch"]), parameters["batch_size"]
    if isinstance(size, str):
        size = auto.batch_size(per_epoch * _USUAL_BATCH)
    mine, n_samples = ranks.span(int(size)), per_epoch * int(size)
    with ExitStack() as stack:
        with ranks.together():
            share = max(1, mine.stop - mine.start)
            parts = map(open_part, stream_parts(_again_and_again(X), share))
            first = next(parts)
        run, begun = begin(
            stack,
            first,
            lambda: {"kind": "a stream", "n_channels": first.n_channels},
            {**parameters, "batch_size": size},
            n_samples=n_samples,
            seed=seed,
            device=device,
            kept=kept,
            fitted_before=fitted_before,
            ranks=ranks,
        )
        networks, settings, seed = run.networks, begun.settings, begun.batches.seed
        n_kept = len(settling_sample(n_samples, settings.K))
        batches = StreamBatches(
            chain([first], parts),
            begun.batches,
            per_epoch,
            settings.epochs,
            Reservoir(ranks.most(n_kept), seed),
        )
        if begun.goes_on:
            take_up_generators(stack, run)
        else:
            n_start = -(-min(n_samples, most_start_rows(settings.K)) // settings.batch_size)
            start_centroids(networks, batches.start(n_start), settings, seed=seed, ranks=ranks)
            run.history.append(entry(0, n_clusters=settings.K))
            run.generators = generator_states()
        ending = begun.train(run, batches) if settings.epochs or begun.goes_on else "done"
        history, state, watch = run.entries(), begun.state(run, ending), run.watch
        del run  # what the optimiser and the gradients hold is room for settling
        networks.student.zero_grad()
        if begun.goes_on and ending == "done":  # what came before is not kept
            with ranks.together():
                batches.keep_more(ranks.most(n_kept))
        n_each = min(ranks.objects(len(batches.kept)))
        n = n_each * ranks.count

        def labels() -> npt.NDArray[np.int64]:
            found = np.zeros(n, np.int64)
            inputs = batches.inputs(n_each, settings.inference_batch)
            assign(networks.teacher, inputs, out=found[ranks.span(n)])
            return ranks.sum_array(found)

        if n:
            unsettled = None
            begun.bar.set_description("ExCB: settling")
            if enough_to_settle(settings, n):
                unsettled = settle_teacher(
                    networks.teacher,
                    batches.inputs(n_each, settings.inference_batch),
                    settings,
                    n_samples=n,
                    seed=seed,
                    ranks=ranks,
                )
            last = labels()
            unsettled = last if unsettled is None else unsettled
            history[-1] |= filling(last, settings.K) | filling(unsettled, settings.K, "_unsettled")
            if ending == "done":
                watch.look(history[-1])
    return Fitted(
        networks.teacher.cpu().eval(),
        settings,
        begun.batches.recipe,
        begun.n_features,
        begun.facts.shape,
        labels=np.empty(0, np.int64),
        history=history,
        seed=seed,
        state=state,
        stopped=ending == "stopped",
    )


def _again_and_again(X: Iterable[Any]) -> Iterator[Any]:
    """Items of a stream, which begins again when it ends."""
    n_before = 0
    while True:
        n = 0
        for n, item in enumerate(X, 1):  # noqa: B007 - as many as came
            yield item
        if not n and not n_before:
            raise ValueError("X is empty: there is no image in it.")
        if not n:
            raise ValueError(
                f"X has ended after {n_before:,} images and gives none when it is iterated again, "
                "but steps_per_epoch asks for more. Pass a data set that begins anew, as an "
                "IterableDataset does, or lower epochs or steps_per_epoch."
            )
        n_before += n
