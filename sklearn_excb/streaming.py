"""A fit of a stream that is too long to be kept: so many steps an epoch, each image once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sklearn_excb import auto
from sklearn_excb.batches import Batch, ViewBatches
from sklearn_excb.centroids import most_start_rows
from sklearn_excb.fingerprints import of_parameters
from sklearn_excb.fitting import Fitted
from sklearn_excb.generators import own_randomness
from sklearn_excb.history import entry, filling
from sklearn_excb.images import StreamPart, stream_parts
from sklearn_excb.inference import assign
from sklearn_excb.networks import ClusterNetwork, compiled
from sklearn_excb.online import OnlineFit
from sklearn_excb.optimization import Plan
from sklearn_excb.preparing import facts_of, prepare
from sklearn_excb.reservoir import Reservoir
from sklearn_excb.settling import settling_sample
from sklearn_excb.sources import Source
from sklearn_excb.training import start_centroids

_USUAL_BATCH = 256  # by which the length of the stream is guessed, to look up its batch size


def fit_stream(
    X: Iterable[Any],
    parameters: Mapping[str, Any],
    open_part: Callable[[StreamPart], Source],
    *,
    seed: int,
    n_jobs: int,
    device: torch.device,
) -> Fitted:
    """Fit a stream, of which an epoch is ``steps_per_epoch`` batches.

    Parameters
    ----------
    X : iterable
        Of images. It is iterated again when it ends.
    parameters : mapping
        The estimator's, validated one by one.
    open_part : callable
        From images of the stream to a source.
    seed : int
        Of every draw.
    n_jobs : int
        Threads that open images.
    device : torch.device
        Where the networks run.

    Raises
    ------
    ValueError
        If there is nothing in it, or it ends and gives nothing when it is iterated again.
    DivergedError
        If loss or gradients are not finite.
    """
    per_epoch, size = int(parameters["steps_per_epoch"]), parameters["batch_size"]
    if isinstance(size, str):
        size = auto.batch_size(per_epoch * _USUAL_BATCH)
    n_samples = per_epoch * int(size)
    parts = map(open_part, stream_parts(_again_and_again(X), int(size)))
    first = next(parts)
    facts = replace(facts_of(first), n_samples=n_samples)
    with own_randomness(seed):
        chosen = {**parameters, "batch_size": size}
        networks, settings, n_features, batches = prepare(first, facts, chosen, seed, device)
        networks.to(device)
        plan = Plan(per_epoch, per_epoch * settings.epochs)

        def start() -> Iterator[Batch]:
            n_parts = -(-min(n_samples, most_start_rows(settings.K)) // settings.batch_size)
            for part in chain([first], islice(parts, n_parts - 1)):
                views = ViewBatches(part, batches.recipe, len(part), 1, seed, n_jobs, device)
                yield from views.start()

        start_centroids(networks, start(), settings, seed=seed)
        kept = Reservoir(len(settling_sample(n_samples, settings.K)), seed)
        online = OnlineFit(
            settings,
            batches.recipe,
            n_samples,
            n_features,
            facts.shape,
            seed,
            of_parameters(parameters),
            networks,
            [entry(0, n_clusters=settings.K)],
            device,
            kept,
            plan,
            replays=False,
        )
        with (
            tqdm(
                total=plan.total_steps * settings.batch_size,
                desc="ExCB",
                unit="img",
                disable=not parameters["verbose"],
            ) as bar,
            compiled(networks, wanted=parameters["compile"]),
        ):
            stopped = online.learn_all(parts, n_jobs=n_jobs, bar=bar)
        fitted = replace(online.fitted(), stopped=stopped)
        fillings = (
            filling(_labels(teacher, online.inputs(), len(kept)), settings.K, suffix)
            for teacher, suffix in ((fitted.teacher, ""), (networks.teacher, "_unsettled"))
        )
        for of_teacher in fillings if len(kept) else ():
            fitted.history[-1] |= of_teacher
    fitted.teacher.cpu()
    return fitted


def _labels(teacher: ClusterNetwork, inputs: Iterator[Tensor], n: int) -> npt.NDArray[np.int64]:
    found = np.empty(n, np.int64)
    assign(teacher, inputs, out=found)
    return found


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
