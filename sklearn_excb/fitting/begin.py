"""What every fit begins with: ranks that agree, states of before, networks and what trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from sklearn_excb.data.sources import Source
from sklearn_excb.fitting.duration import warn_if_long
from sklearn_excb.fitting.memory_budget import resolve_micro_batch_together
from sklearn_excb.fitting.resume import about, check_same_fit, earlier_of, warn_nothing_to_train
from sklearn_excb.fitting.run import Ending, Run, train_on
from sklearn_excb.networks.student_teacher import compiled
from sklearn_excb.runtime.generator_state import (
    preserved_generators,
    seeded_generators,
    set_generator_states,
)
from sklearn_excb.runtime.progress import progress_bar
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.settings.resolve import Facts, Settings
from sklearn_excb.settings.validation import check_devices
from sklearn_excb.storage.checkpoint_folder import CheckpointFolder, open_checkpoint_folder
from sklearn_excb.storage.packing import Snapshot, pack, unpack
from sklearn_excb.training.build import facts_of, prepare
from sklearn_excb.training.network_description import describe
from sklearn_excb.views.batches import Batches, ViewBatches

_OF_FOLDER = ("checkpoint_dir", "checkpoint_every", "n_checkpoints")


@dataclass(frozen=True)
class Beginning:
    """A fit before its first step.

    Attributes
    ----------
    settings : Settings
        Every parameter, resolved.
    facts : Facts
        Of the data.
    n_features : int
        What the backbone gives.
    folder : CheckpointFolder or None
        Where states go.
    about : mapping
        What goes with each of them.
    goes_on : bool
        Whether there was a state.
    bar : tqdm
        Counts images.
    tell : callable
        Warns of the seconds to the end, if they are many.
    compiles : bool
        Whether torch.compile makes kernels of the backbone.
    keeps_state : bool
        Whether a later fit may go on from this one (``warm_start``).
    """

    settings: Settings
    facts: Facts
    n_features: int
    folder: CheckpointFolder | None
    about: Mapping[str, Any]
    goes_on: bool
    bar: tqdm[Any]
    tell: Callable[[float], None]
    compiles: bool
    keeps_state: bool

    def train(self, run: Run, batches: Batches) -> Ending:
        """Train to the end; see :func:`sklearn_excb.fitting.run.train_on`."""
        with compiled(run.networks, wanted=self.compiles):
            return train_on(
                run, batches, self.settings, self.bar, self.folder, self.about, self.tell
            )

    def state(self, run: Run, ending: Ending) -> Snapshot | None:
        """State of a run that has ended, to go on from, if that is wanted and it was sound."""
        if not self.keeps_state or ending == "diverged":
            return None
        return pack({"about": self.about, **run.state_dict()})


def begin(
    stack: ExitStack,
    source: Source,
    data: Callable[[], Mapping[str, Any]],
    parameters: Mapping[str, Any],
    *,
    n_samples: int,
    seed: int,
    device: torch.device,
    kept: Snapshot | None,
    fitted_before: bool,
    ranks: Ranks,
) -> tuple[Run, ViewBatches, Beginning]:
    """Begin a fit, or go on with one.

    Parameters
    ----------
    stack : ExitStack
        Of what holds until the fit ends: the lock of the folder, the generators of random numbers.
    source : Source
        The samples, or as many of them as are there.
    data : callable
        Gives what changes when the samples do; asked only where it matters.
    n_samples : int
        Of an epoch.
    parameters, seed, device, kept, fitted_before, ranks
        As of :func:`sklearn_excb.fitting.fit.fit_source`.

    Returns
    -------
    run : Run
        That has done nothing, or the one that is gone on with.
    batches : ViewBatches
        Of the source, and of these ranks; their seed is that of the run.
    beginning : Beginning
    """
    check_same_fit(ranks, data, parameters, seed)
    seed = ranks.broadcast(seed)
    folder = earlier = None
    warm, what = parameters["warm_start"], {}
    with ranks.together():
        if ranks.first:
            folder = stack.enter_context(
                open_checkpoint_folder(*(parameters[of] for of in _OF_FOLDER))
            )
            if folder is not None or warm:
                what = about(data(), parameters, ranks.count)
            before = unpack(*kept) if kept else None
            earlier = earlier_of(folder, what, parameters, before, fitted_before=fitted_before)
    earlier, what = ranks.broadcast((earlier, what))
    if earlier is not None:
        seed = earlier.seed(parameters["random_state"], seed)
        parameters = earlier.parameters(parameters)

    stack.enter_context(seeded_generators(seed))
    facts = ranks.broadcast(replace(facts_of(source), n_samples=n_samples))
    networks, settings, n_features, batches = prepare(source, facts, parameters, seed, device)
    check_devices(settings, ranks.count)
    batches = replace(batches, ranks=ranks, recipe=ranks.broadcast(batches.recipe))
    of_epoch = replace(batches, n_of_stream=n_samples)
    settings = resolve_micro_batch_together(networks, settings, of_epoch, parameters)
    networks.to(device)
    ranks.broadcast_(tensor.detach() for tensor in networks.state_dict().values())
    per_epoch = settings.steps_per_epoch(n_samples)
    what |= {
        "seed": seed,
        "steps_per_epoch": per_epoch,
        "network": describe(
            networks.teacher,
            settings,
            batches.recipe,
            n_features=n_features,
            image_shape=facts.shape,
        ),
    }
    shown = parameters["verbose"] and ranks.first
    bar = stack.enter_context(progress_bar(shown=shown, desc="ExCB: starting", unit="img"))
    run = Run.of(networks, settings, device, per_epoch)
    if earlier is not None:
        step, within = earlier.first_step(settings, n_samples)
        run.load_state_dict(earlier.state, step, within=within)
        if warm and step == per_epoch * settings.epochs:
            warn_nothing_to_train(settings.epochs)

    def tell(seconds: float) -> None:
        if ranks.first:
            warn_if_long(seconds, parameters, facts, device)

    beginning = Beginning(
        settings=settings,
        facts=facts,
        n_features=n_features,
        folder=folder,
        about=what,
        goes_on=earlier is not None,
        bar=bar,
        tell=tell,
        compiles=parameters["compile"],
        keeps_state=warm,
    )
    return run, batches, beginning


def take_up_generators(stack: ExitStack, run: Run) -> None:
    """Draw as the run would have that is gone on with; the caller's generators are put back."""
    stack.enter_context(preserved_generators())
    set_generator_states(run.generators)
