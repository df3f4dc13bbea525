"""Checkpoints of a fit: the checkpoint that it resumes from, and those that it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sklearn_excb.fitting.resume import (
    PreviousRun,
    check_same_fit,
    find_previous_run,
    warn_nothing_to_train,
)
from sklearn_excb.storage.checkpoint_folder import CheckpointFolder, open_checkpoint_folder
from sklearn_excb.storage.packing import Snapshot, pack
from sklearn_excb.training.build import Model
from sklearn_excb.training.collapse import all_finite
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.network_description import describe

if TYPE_CHECKING:
    from sklearn_excb.fitting.run import Run

Ending = Literal["done", "stopped", "diverged"]

_OF_FOLDER = ("checkpoint_dir", "checkpoint_every", "n_checkpoints")


@dataclass
class Checkpoints:
    """The checkpoints of a fit.

    Attributes
    ----------
    context : FitContext
        Context of the fit, with the seed and the parameters of the run that it resumes.
    folder : CheckpointFolder or None
        Folder of the checkpoints; None on all ranks but the first, and without
        ``checkpoint_dir``.
    previous : PreviousRun or None
        Run that the fit resumes, until it is restored.
    description : dict
        Data, parameters, versions and network of the fit. Each checkpoint contains it.
    """

    context: FitContext
    folder: CheckpointFolder | None
    previous: PreviousRun | None
    description: dict[str, Any]

    def restore(self, run: Run, model: Model, n_samples: int) -> bool:
        """Load the previous run into a new one; return whether there is a previous run."""
        settings = model.settings
        per_epoch = settings.steps_per_epoch(n_samples)
        self.description |= {
            "seed": self.context.seed,
            "steps_per_epoch": per_epoch,
            "network": describe(
                model.networks.teacher,
                settings,
                model.recipe,
                n_features=model.n_features,
                image_shape=model.facts.shape,
            ),
        }
        previous, self.previous = self.previous, None  # its tensors are not kept
        if previous is None:
            return False
        step, within = previous.first_step(settings, n_samples)
        run.load_state_dict(previous.state, step, within=within)
        if self.context.parameters["warm_start"] and step == per_epoch * settings.epochs:
            warn_nothing_to_train(settings.epochs)
        return True

    def write(self, run: Run, loss: float = math.inf) -> None:
        """Write a checkpoint, unless this step has one already or a weight is not finite.

        Parameters
        ----------
        run : Run
            Run whose last step is complete.
        loss : float, optional
            Mean loss of the epoch that ends with the step. The checkpoint with the lowest loss is
            kept as the best one.
        """
        folder = self.folder
        if folder is None or folder.written == run.step or not all_finite(run.networks):
            return
        best, run.best = loss < run.best, min(loss, run.best)
        folder.write(run.step, self._state(run), best=best)

    def state(self, run: Run, ending: Ending) -> Snapshot | None:
        """Return the training state of an ended run, if a warm start may continue from it."""
        if not self.context.parameters["warm_start"] or ending == "diverged":
            return None
        return pack(self._state(run))

    def _state(self, run: Run) -> dict[str, Any]:
        return {"about": self.description, **run.state_dict()}


@contextmanager
def open_checkpoints(
    fingerprint: Callable[[], Mapping[str, Any]], context: FitContext
) -> Iterator[tuple[FitContext, Checkpoints]]:
    """Lock the folder of the checkpoints, and find the run that the fit resumes.

    Parameters
    ----------
    fingerprint : callable
        Function that returns the fingerprint of the data. It is only called for a comparison.
    context : FitContext
        Context of the fit with the user's parameters.

    Yields
    ------
    context : FitContext
        Context with the seed and the parameters of the run that the fit resumes, equal on all
        ranks.
    checkpoints : Checkpoints
        Checkpoints of the fit.

    Raises
    ------
    ValueError
        If the folder holds another run, or contradicts ``resume``.
    OSError
        If the folder cannot be written to, or another fit uses it.
    RankError
        If another rank runs a different fit.
    """
    with ExitStack() as stack:

        def open_folder() -> CheckpointFolder | None:
            path, *how = (context.parameters[name] for name in _OF_FOLDER)
            return stack.enter_context(open_checkpoint_folder(path, *how))

        found = resume_previous(open_folder, fingerprint, context)
        yield found.context, found


def resume_previous(
    open_folder: Callable[[], CheckpointFolder | None],
    fingerprint: Callable[[], Mapping[str, Any]],
    context: FitContext,
) -> Checkpoints:
    """Find the run that a fit resumes, the same on all ranks.

    Only the first rank opens the folder. :func:`open_checkpoints` also locks it.
    """
    ranks, parameters = context.ranks, context.parameters
    check_same_fit(fingerprint, context)
    seed = ranks.broadcast(context.seed)
    folder, found = None, (None, {})
    with ranks.together():
        if ranks.first:
            folder = open_folder()
            found = find_previous_run(folder, fingerprint, context)
    previous, description = ranks.broadcast(found)
    if previous is not None:
        seed = previous.seed(parameters["random_state"], seed)
        parameters = previous.parameters(parameters)
    resumed = replace(context, parameters=parameters, seed=seed)
    return Checkpoints(resumed, folder, previous, description)
