"""A run: all that a step depends on, so that it can be put down after one and taken up again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from tqdm.auto import tqdm

from sklearn_excb.exceptions import RankError
from sklearn_excb.fitting.duration import Pace
from sklearn_excb.method.balancing import Balancing
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.runtime.generator_state import generator_states
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.signals import SignalRequests, deferred_signals
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.storage.checkpoint_folder import CheckpointFolder
from sklearn_excb.training.build import build_balancing
from sklearn_excb.training.collapse import CollapseMonitor, all_finite
from sklearn_excb.training.gradients import Divergence, Gradients
from sklearn_excb.training.history import EpochRecord
from sklearn_excb.training.loop import train
from sklearn_excb.training.optimizer import Plan, build_optimizer, build_scaler
from sklearn_excb.views.batches import Batch, Batches

Ending = Literal["done", "stopped", "diverged"]


@dataclass
class Run:
    """What the steps of a training change.

    Learning rates, temperatures, data order and the draws of a step follow from the seed and the
    number of the step.

    Attributes
    ----------
    networks : StudentTeacher
        On the device of the batches.
    balancing : Balancing
        Cluster sizes, or the state of a baseline.
    optimizer : Optimizer
        Of the student.
    scaler : GradScaler
        Of the loss.
    record : EpochRecord
        Of the epoch that is under way.
    watch : CollapseMonitor
        Warns once.
    history : list of dict
        Entries of the epochs that are done, from 0.
    step : int
        Steps that are done.
    generators : dict
        Their states after the last step.
    best : float
        Lowest loss of an epoch at whose end a state was written.
    """

    networks: StudentTeacher
    balancing: Balancing
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    record: EpochRecord
    watch: CollapseMonitor
    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    generators: dict[str, Any] = field(default_factory=generator_states)
    best: float = math.inf

    @classmethod
    def of(
        cls,
        networks: StudentTeacher,
        settings: Settings,
        device: torch.device,
        steps_per_epoch: int,
    ) -> Run:
        """Build a run that has done nothing."""
        return cls(
            networks,
            build_balancing(settings, device),
            build_optimizer(networks.student, settings),
            build_scaler(settings, device),
            EpochRecord(settings.K, device),
            CollapseMonitor(networks.teacher, settings, steps_per_epoch),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, not copied."""
        return {
            "step": self.step,
            "networks": self.networks.state_dict(),
            "balancing": self.balancing.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "record": self.record.state_dict(),
            "history": self.history,
            "warned": self.watch.warned,
            "generators": self.generators,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int, *, within: bool) -> None:
        """Take up such a state; generators are left to whoever takes it up.

        Parameters
        ----------
        state : mapping
            Of :meth:`state_dict`, perhaps read from a file.
        step : int
            With which to go on.
        within : bool
            Whether the state's epoch is gone on with, and not begun anew.

        Raises
        ------
        ValueError
            If the networks are others.
        """
        try:
            self.networks.load_state_dict(state["networks"])
        except RuntimeError as error:
            raise ValueError(
                "The state is of another network than this one: pass the backbone that the run "
                f"had. {error}"
            ) from error
        self.balancing.load_state_dict(state["balancing"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # not of states before float16
            self.scaler.load_state_dict(state["scaler"])
        self._match_memory_format()
        if within:
            self.record.load_state_dict(state["record"])
        self.history = [dict(of_epoch) for of_epoch in state["history"]]
        self.step = step
        self.generators = state["generators"]
        self.best = state["best"]
        self.watch.warned = state["warned"]
        if self.step:
            self.watch.keep(f"after step {self.step}")

    def entries(self) -> list[dict[str, Any]]:
        """Entries of the epochs that are done, and of the one that is under way."""
        if not self.record.steps:
            return self.history
        return [*self.history, self.record.summary(self.history[-1]["epoch"] + 1)]

    def _match_memory_format(self) -> None:
        """Give the optimiser's tensors the memory format they would have had: sums depend on it."""
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor):  # a copy: the state is not ours to change
                    like = parameter if value.shape == parameter.shape else value
                    kept[name] = torch.empty_like(like, dtype=value.dtype).copy_(value)


def train_on(
    run: Run,
    batches: Batches,
    settings: Settings,
    bar: tqdm[Any],
    folder: CheckpointFolder | None,
    about: Mapping[str, Any],
    tell: Callable[[float], None],
) -> Ending:
    """Train to the end, keeping an entry an epoch, showing progress, and writing states.

    Parameters
    ----------
    run : Run
        Changed in place; may have steps behind it.
    batches : Batches
        Of the whole fit.
    settings : Settings
        Of the fit.
    bar : tqdm
        Counts images.
    folder : CheckpointFolder or None
        Where states go.
    about : mapping
        What goes with each of them.
    tell : callable
        Of the seconds to the end, once they can be foretold.

    Returns
    -------
    {"done", "stopped", "diverged"}
        "stopped" by Ctrl-C, within an epoch perhaps. "diverged" is after a warning, with the
        teacher of the last sound epoch.

    Raises
    ------
    DivergedError
        If the first epoch diverges.
    """
    plan = Plan(batches.steps_per_epoch, batches.steps_per_epoch * settings.epochs)
    pace = Pace()
    gradients = Gradients(run.networks.student, run.scaler)
    bar.reset(total=plan.total_steps * settings.batch_size)
    bar.n = bar.initial = run.step * settings.batch_size
    bar.set_description("ExCB")

    def save(loss: float = math.inf) -> None:
        if folder is None or folder.written == run.step or not all_finite(run.networks):
            return
        best, run.best = loss < run.best, min(loss, run.best)
        folder.write(run.step, {"about": about, **run.state_dict()}, best=best)

    def diverged(epoch: int, loss: float, divergence: Divergence | None) -> Ending:
        rows = [] if divergence is None else batches.rows(divergence.step)
        run.record = EpochRecord(settings.K, batches.device)
        run.watch.recover(epoch, loss, rows, divergence)
        return "diverged"

    save()
    ranks = batches.ranks
    with deferred_signals(saves=ranks.any(folder is not None)[0]) as wishes:
        asked = _StopRequests(wishes, ranks)
        for report in train(
            run.networks,
            run.balancing,
            run.optimizer,
            _read_in_step(batches.from_step(run.step), asked, save),
            settings,
            plan,
            seed=batches.seed,
            first_step=run.step,
            ranks=ranks,
            scaler=run.scaler,
        ):
            run.record.add(report)
            run.step = report.step + 1
            run.generators = generator_states()
            bar.update(settings.batch_size)
            if (a_step := pace.step()) is not None:
                tell(a_step * (plan.total_steps - run.step))
            epoch_ends = run.step % plan.steps_per_epoch == 0
            divergence = gradients.look(report) or (gradients.ask() if epoch_ends else None)
            if divergence is not None:
                return diverged(report.epoch, divergence.loss, divergence)
            loss = math.inf
            if epoch_ends:
                last = run.record.summary(report.epoch)
                if not run.watch.sound(last):
                    return diverged(report.epoch, last["loss"], None)
                run.record = EpochRecord(settings.K, batches.device)
                run.watch.look(last)
                loss = last["loss"]
                run.history.append(last)
                bar.set_postfix_str(
                    f"epoch {report.epoch}/{settings.epochs}, loss {last['loss']:.3f}, "
                    f"empty before balancing {last['empty_fraction_plain']:.1%}"
                )
            last_one = run.step == plan.total_steps
            due = folder is not None and folder.due(run.step, epoch_ends=epoch_ends)
            if asked.save or asked.stop or last_one or due:
                save(loss)
            if asked.save:
                asked.pass_on()
            if asked.stop:
                return "stopped"
        return "stopped" if ranks.any(wishes.stop)[0] else "done"  # it may have come at the end


class _StopRequests:
    """What signals have asked of the run; of several ranks, that all of them do it after one step.

    Then it is what had come to any of them when the batch of the step was read.

    Parameters
    ----------
    wishes : SignalRequests
        Of this process.
    ranks : Ranks
        Those that train together.
    """

    def __init__(self, wishes: SignalRequests, ranks: Ranks) -> None:
        self._wishes = wishes
        self._stop = self._save = False
        self.ranks = ranks

    @property
    def stop(self) -> bool:
        """Whether to end after this step."""
        return self._stop if self.ranks.count > 1 else self._wishes.stop

    @property
    def save(self) -> bool:
        """Whether to save after this step, as the process is then ended."""
        return self._save if self.ranks.count > 1 else self._wishes.save

    def look(self, *, failed: bool) -> bool:
        """Ask all ranks; whether one of them has failed."""
        found = self.ranks.any(failed, self._wishes.stop, self._wishes.save)
        failed, self._stop, self._save = found
        return failed

    def pass_on(self) -> None:
        """Do with SIGTERM what it would have done; end the other ranks' fit."""
        if self._wishes.save:
            self._wishes.pass_on()
        if self.ranks.count > 1:
            raise RankError("The fit ends: one of its processes was asked to (SIGTERM).")


def _read_in_step(
    batches: Iterator[Batch], asked: _StopRequests, save: Callable[[], None]
) -> Iterator[Batch]:
    """Yield the batches; where one cannot be read, nothing of the steps before it is lost."""
    while True:
        batch = error = None
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as raised:
            error = raised
        if asked.look(failed=error is not None):
            save()
            asked.ranks.fail(error)
        assert batch is not None
        yield batch
