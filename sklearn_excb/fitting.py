"""A fit from end to end: resolve, build, start or go on, train, assign."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from sklearn_excb import auto
from sklearn_excb.descriptions import describe
from sklearn_excb.durations import warn_if_long
from sklearn_excb.feature_batches import feature_batches, features_of
from sklearn_excb.generators import (
    generator_states,
    generators_kept,
    own_randomness,
    set_generators,
)
from sklearn_excb.grouping import group_centroids
from sklearn_excb.history import entry, filling
from sklearn_excb.inference import assign
from sklearn_excb.memory_budget import within_memory
from sklearn_excb.networks import ClusterNetwork, compiled
from sklearn_excb.packing import pack, unpack
from sklearn_excb.preparing import facts_of, prepare
from sklearn_excb.ranks import ALONE, Ranks
from sklearn_excb.resuming import about, earlier_of, make_sure_of, warn_of_no_epochs
from sklearn_excb.row_views import RowRecipe
from sklearn_excb.run_folder import run_folder
from sklearn_excb.running import Run, train_on
from sklearn_excb.settling import settle_teacher, settling_sample
from sklearn_excb.skipping import tell_of_skipped
from sklearn_excb.sources import Source
from sklearn_excb.training import start_centroids
from sklearn_excb.validation import check_devices
from sklearn_excb.views import ViewRecipe

_OF_FOLDER = ("checkpoint_dir", "checkpoint_every", "n_checkpoints")

Snapshot = tuple[dict[str, torch.Tensor], Any]  # a state, copied and packed


@dataclass(frozen=True)
class Fitted:
    """What a fit gives.

    Attributes
    ----------
    teacher : ClusterNetwork
        On the CPU, in evaluation mode.
    settings : auto.Settings
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
    settings: auto.Settings
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
        make_sure_of(ranks, source, parameters, seed)
        seed = ranks.from_first(seed)
        folder = earlier = None
        warm, what = parameters["warm_start"], {}
        with ranks.together():
            if ranks.first:
                folder = stack.enter_context(run_folder(*(parameters[of] for of in _OF_FOLDER)))
                if folder is not None or warm:
                    what = about(source, parameters, ranks.count)
                before = unpack(*kept) if kept else None
                earlier = earlier_of(folder, what, parameters, before, fitted_before=fitted_before)
        earlier, what = ranks.from_first((earlier, what))
        if earlier is not None:
            seed = earlier.seed(parameters["random_state"], seed)
            parameters = earlier.parameters(parameters)

        stack.enter_context(own_randomness(seed))
        facts = facts_of(source)
        networks, settings, n_features, batches = prepare(source, facts, parameters, seed, device)
        check_devices(settings, ranks.count)
        batches = replace(batches, ranks=ranks, recipe=ranks.from_first(batches.recipe))
        settings = within_memory(networks, settings, batches, parameters)
        networks.to(device)
        ranks.copy_first_(tensor.detach() for tensor in networks.state_dict().values())
        what |= {
            "seed": seed,
            "steps_per_epoch": batches.steps_per_epoch,
            "network": describe(
                networks.teacher,
                settings,
                batches.recipe,
                n_features=n_features,
                image_shape=facts.shape,
            ),
        }
        recipe = batches.recipe  # of inference

        bar = stack.enter_context(
            tqdm(
                desc="ExCB: starting",
                unit="img",
                disable=not (parameters["verbose"] and ranks.first),
            )
        )

        run = Run.of(networks, settings, device, batches.steps_per_epoch)
        if earlier is not None:
            step, within = earlier.first_step(settings, len(source))
            run.go_on_from(earlier.state, step, within=within)

        if settings.freeze_backbone:
            bar.set_description("ExCB: features")
            mine = ranks.span(len(source))
            features = np.zeros((len(source), n_features), np.float32)
            features[mine] = features_of(networks, batches, settings, np.arange(len(source))[mine])
            batches = feature_batches(batches, settings, ranks.sum_array(features))
            del features

        whole = partial(batches.whole, settings.inference_batch)

        def labels(sums: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.int64]:
            every = np.arange(len(source))
            mine, found = ranks.span(len(source)), np.zeros_like(every)
            assign(networks.teacher, whole(every[mine]), out=found[mine], sums=sums)
            if sums is not None:
                ranks.sum_array(sums)
            return ranks.sum_array(found)

        def tell(seconds: float) -> None:
            if ranks.first:
                warn_if_long(seconds, parameters, facts, device)

        sums = np.zeros((settings.K, n_features), np.float32)  # pages that nobody has touched yet
        if earlier is None:
            start_centroids(networks, batches.start(), settings, seed=seed, ranks=ranks)
            last = labels(None if settings.epochs else sums)
            run.history.append(entry(0, inference=last, n_clusters=settings.K))
            run.generators = generator_states()
        else:
            stack.enter_context(generators_kept())
            set_generators(run.generators)
            if warm and run.step == settings.epochs * batches.steps_per_epoch:
                warn_of_no_epochs(settings.epochs)
        history, watch = run.history, run.watch
        ending, state = "done", None
        if settings.epochs or earlier is not None:
            bar.set_postfix_str(f"untrained: empty {history[0]['empty_fraction']:.1%}")
            with compiled(networks, wanted=parameters["compile"]):
                ending = train_on(run, batches, settings, bar, folder, what, tell)
            history = run.entries()
            if warm and ending != "diverged":
                state = pack({"about": what, **run.state_dict()})
            del run  # what the optimiser and the gradients hold is room for settling
            networks.student.zero_grad()
            bar.set_description("ExCB: settling, assigning the images")
            unsettled = None
            if settings.settle_passes:
                sample = settling_sample(len(source), settings.K)
                unsettled = settle_teacher(
                    networks.teacher,
                    whole(sample[ranks.span(len(sample))]),
                    settings,
                    n_samples=len(sample),
                    seed=seed,
                    ranks=ranks,
                )
            last = labels(sums)
            unsettled = last if unsettled is None else unsettled
            history[-1] |= filling(last, settings.K) | filling(unsettled, settings.K, "_unsettled")
            if ending == "done":
                watch.look(history[-1])
        tell_of_skipped(source, ranks)
    teacher = networks.teacher.cpu().eval()
    return Fitted(
        teacher,
        settings,
        recipe,
        n_features,
        facts.shape,
        labels=last,
        history=history,
        group_centroids=group_centroids(sums, last, teacher.centroids.unit().detach().numpy()),
        seed=seed,
        state=state,
        stopped=ending == "stopped",
    )
