"""A fit from end to end: resolve, build, start or go on, train, assign."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sklearn_excb.data.fingerprints import source_fingerprint
from sklearn_excb.data.sources import Source
from sklearn_excb.data.unusable_images import share_skipped
from sklearn_excb.fitting.begin import begin, take_up_generators
from sklearn_excb.fitting.finish import settled_labels
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.generator_state import generator_states
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.storage.packing import Snapshot
from sklearn_excb.training.coarse_groups import group_centroids
from sklearn_excb.training.frozen_features import feature_batches, features_of
from sklearn_excb.training.history import entry
from sklearn_excb.training.inference import assign
from sklearn_excb.training.loop import start_centroids
from sklearn_excb.training.settling import settling_sample
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe


@dataclass(frozen=True)
class Fitted:
    """What a fit gives.

    Attributes
    ----------
    teacher : ClusterNetwork
        On the CPU, in evaluation mode.
    settings : Settings
        Every parameter, resolved.
    recipe : ViewRecipe or RowRecipe
        With the statistics that inference normalises by.
    n_backbone_features : int
        What f gives.
    image_shape : tuple of int
        Typical (height, width) of the images; (0, 0) for rows.
    labels : ndarray of shape (n_samples,)
        Of the training samples, by plain inference; empty for a network of others.
    history : list of dict
        An entry an epoch, from 0.
    group_centroids : ndarray of shape (K, d), float32, or None
        Where clusters lie when they are merged; None for a network of others.
    seed : int or None
        Of every draw.
    state : tuple or None
        Of the training, packed, to go on from (``warm_start``).
    stopped : bool
        Whether Ctrl-C has ended the training.
    """

    teacher: ClusterNetwork
    settings: Settings
    recipe: ViewRecipe | RowRecipe
    n_backbone_features: int
    image_shape: tuple[int, int]
    labels: npt.NDArray[np.int64]
    history: list[dict[str, Any]]
    group_centroids: npt.NDArray[np.float32] | None = None
    seed: int | None = None
    state: Snapshot | None = None
    stopped: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: with CPU tensors only, to load where there is no accelerator."""
        return vars(self) | {"teacher": self.teacher.cpu()}


def fit_source(
    source: Source,
    parameters: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    kept: Snapshot | None = None,
    fitted_before: bool = False,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Fit a source of images or rows.

    Parameters
    ----------
    source : Source
        Of at least K samples.
    parameters : mapping
        The estimator's, validated one by one.
    seed : int
        Of every draw, unless a run is taken up that has its own.
    device : torch.device
        Where the networks run.
    kept : tuple, optional
        State of the fit before, for a warm start.
    fitted_before : bool, default=False
        Whether there was one.
    ranks : Ranks, default=ALONE
        Those that fit together, each of which calls this; it returns the same on all of them. The
        first one reads and writes states.

    Raises
    ------
    RankError
        If another rank has failed, or is at another fit.
    """
    with ExitStack() as stack:
        run, batches, begun = begin(
            stack,
            source,
            partial(source_fingerprint, source),
            parameters,
            n_samples=len(source),
            seed=seed,
            device=device,
            kept=kept,
            fitted_before=fitted_before,
            ranks=ranks,
        )
        networks, settings, bar = run.networks, begun.settings, begun.bar
        recipe, n_features, seed = batches.recipe, begun.n_features, batches.seed  # of inference

        if settings.freeze_backbone:
            bar.set_description("ExCB: features")
            mine = ranks.span(len(source))
            features = np.zeros((len(source), n_features), np.float32)
            features[mine] = features_of(networks, batches, settings, np.arange(len(source))[mine])
            features = ranks.sum_array(features)
            goes_on = begun.goes_on
            batches = feature_batches(networks, batches, settings, features, goes_on=goes_on)
            del features

        whole = partial(batches.whole, settings.inference_batch)

        def labels(sums: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.int64]:
            every = np.arange(len(source))
            mine, found = ranks.span(len(source)), np.zeros_like(every)
            assign(networks.teacher, whole(every[mine]), out=found[mine], sums=sums)
            if sums is not None:
                ranks.sum_array(sums)
            return ranks.sum_array(found)

        sums = np.zeros((settings.K, n_features), np.float32)  # pages that nobody has touched yet
        if not begun.goes_on:
            start_centroids(networks, batches.start(), settings, seed=seed, ranks=ranks)
            last = labels(None if settings.epochs else sums)
            run.history.append(entry(0, inference=last, n_clusters=settings.K))
            run.generators = generator_states()
        else:
            take_up_generators(stack, run)
        history, watch = run.history, run.watch
        ending, state = "done", None
        if settings.epochs or begun.goes_on:
            bar.set_postfix_str(f"untrained: empty {history[0]['empty_fraction']:.1%}")
            ending = begun.train(run, batches)
            history, state = run.entries(), begun.state(run, ending)
            del run  # what the optimiser and the gradients hold is room for settling
            networks.student.zero_grad()
            bar.set_description("ExCB: settling, assigning the images")
            sample = settling_sample(len(source), settings.K)
            last, filled = settled_labels(
                networks.teacher,
                lambda: whole(sample[ranks.span(len(sample))]),
                partial(labels, sums),
                settings,
                n_samples=len(sample) if settings.settle_passes else 0,
                seed=seed,
                ranks=ranks,
            )
            history[-1] |= filled
            if ending == "done":
                watch.look(history[-1])
        share_skipped(source, ranks)
    teacher = networks.teacher.cpu().eval()
    return Fitted(
        teacher,
        settings,
        recipe,
        n_features,
        begun.facts.shape,
        labels=last,
        history=history,
        group_centroids=group_centroids(
            sums,
            last,
            teacher.centroids.unit().detach().numpy(),
            directions=settings.has_backbone,
        ),
        seed=seed,
        state=state,
        stopped=ending == "stopped",
    )
