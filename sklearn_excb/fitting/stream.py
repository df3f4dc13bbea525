"""A fit of a stream that is too long to be kept: so many steps an epoch, each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.data.open_source import StreamPart, stream_parts
from sklearn_excb.data.sources import Source
from sklearn_excb.exceptions import ImageError, StreamEndError
from sklearn_excb.fitting.begin import begin, take_up_generators
from sklearn_excb.fitting.finish import settled_labels
from sklearn_excb.fitting.fit import Fitted
from sklearn_excb.method.kmeans import most_start_rows
from sklearn_excb.runtime.generator_state import generator_states
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.runtime.signals import deferred_signals
from sklearn_excb.settings import auto_rules as rules
from sklearn_excb.storage.packing import Snapshot
from sklearn_excb.training.history import entry
from sklearn_excb.training.inference import assign
from sklearn_excb.training.loop import start_centroids
from sklearn_excb.training.settling import enough_to_settle, settling_sample
from sklearn_excb.views.reservoir import Reservoir
from sklearn_excb.views.stream_batches import StreamBatches

_USUAL_BATCH = 256  # by which the length of the stream is guessed, to look up its batch size


def fit_stream(
    X: Iterable[Any],
    parameters: Mapping[str, Any],
    open_part: Callable[[StreamPart], Source],
    *,
    n_jobs: int,
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
    n_jobs : int
        Threads that open images.
    parameters, seed, device, kept, fitted_before, ranks
        As of :func:`sklearn_excb.fitting.fit.fit_source`.

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
        size = rules.batch_size(per_epoch * _USUAL_BATCH)
    mine, n_samples = ranks.span(int(size)), per_epoch * int(size)
    with ExitStack() as stack:
        with ranks.together():
            came = stream_parts(_repeated(X), max(1, mine.stop - mine.start))
            parts = _usable_parts(
                came, open_part, most=per_epoch if parameters["on_error"] == "skip" else 0
            )
            first = next(parts)
        n_channels = first.n_channels
        run, views, begun = begin(
            stack,
            first,
            lambda: {"kind": "a stream", "n_channels": n_channels},
            {**parameters, "batch_size": size, "n_jobs": n_jobs},
            n_samples=n_samples,
            seed=seed,
            device=device,
            kept=kept,
            fitted_before=fitted_before,
            ranks=ranks,
        )
        networks, settings, seed = run.networks, begun.settings, views.seed
        n_kept = len(settling_sample(n_samples, settings.K))
        batches = StreamBatches(
            parts=_with_first(first, parts),
            recipe=views.recipe,
            n_channels=n_channels,
            batch_size=settings.batch_size,
            steps_per_epoch=per_epoch,
            n_epochs=settings.epochs,
            seed=seed,
            n_jobs=n_jobs,
            device=device,
            ranks=ranks,
            kept=Reservoir(ranks.most(n_kept), seed),
        )
        del first, views  # images that nobody needs any more
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
        begun.bar.set_description("ExCB: settling")
        if begun.goes_on and ending == "done" and settings.settle_passes:
            with (
                deferred_signals(saves=False) as wishes,
                ranks.together(),
                suppress(StreamEndError),
            ):
                batches.keep_more(lambda: not wishes.stop)  # of what came before, none is kept
            ending = "stopped" if ranks.any(wishes.stop)[0] else ending
        n_each = min(ranks.objects(len(batches.kept)))
        n = n_each * ranks.count

        def labels() -> npt.NDArray[np.int64]:
            found = np.zeros(n, np.int64)
            inputs = batches.inputs(n_each, settings.inference_batch)
            assign(networks.teacher, inputs, out=found[ranks.span(n)])
            return ranks.sum_array(found)

        if n:
            _, filled = settled_labels(
                networks.teacher,
                lambda: batches.inputs(n_each, settings.inference_batch),
                labels,
                settings,
                n_samples=n if enough_to_settle(settings, n) else 0,
                seed=seed,
                ranks=ranks,
            )
            history[-1] |= filled
            if ending == "done":
                watch.look(history[-1])
    return Fitted(
        networks.teacher.cpu().eval(),
        settings,
        batches.recipe,
        begun.n_features,
        begun.facts.shape,
        labels=np.empty(0, np.int64),
        history=history,
        seed=seed,
        state=state,
        stopped=ending == "stopped",
    )


def _repeated(X: Iterable[Any]) -> Iterator[Any]:
    """Items of a stream, which begins again when it ends."""
    n_before = 0
    while True:
        n = 0
        for n, item in enumerate(X, 1):  # noqa: B007 - as many as came
            yield item
        if not n and not n_before:
            raise ValueError("X is empty: there is no image in it.")
        if not n:
            raise StreamEndError(
                f"X has ended after {n_before:,} images and gives none when it is iterated again, "
                "but steps_per_epoch asks for more. Pass a data set that begins anew, as an "
                "IterableDataset does, or lower epochs or steps_per_epoch."
            )
        n_before += n


def _with_first(first: Source, parts: Iterator[Source]) -> Iterator[Source]:
    """Parts with the first of them, which is let go of when the next is asked for."""
    held = [first]
    del first
    yield held.pop()
    yield from parts


def _usable_parts(
    parts: Iterator[StreamPart], open_part: Callable[[StreamPart], Source], *, most: int
) -> Iterator[Source]:
    """Parts, opened, but for up to ``most`` in a row of which no image can be used."""
    n_bad = 0
    for part in parts:
        try:
            source = open_part(part)
        except ImageError:
            n_bad += 1
            if n_bad > most:
                raise
            continue
        n_bad = 0
        yield source
