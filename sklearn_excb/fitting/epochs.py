"""Training to the end, with history, progress, checkpoints, divergence and signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from sklearn_excb.exceptions import RankError
from sklearn_excb.fitting.checkpoints import Checkpoints, Ending
from sklearn_excb.fitting.duration import Pace, warn_if_long
from sklearn_excb.fitting.run import Run
from sklearn_excb.networks.student_teacher import compiled
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.signals import SignalRequests, deferred_signals
from sklearn_excb.training.build import Model
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.gradients import Divergence
from sklearn_excb.training.history import EpochRecord
from sklearn_excb.training.optimizer import Plan
from sklearn_excb.views.batches import Batch, Batches


def train_run(
    run: Run,
    batches: Batches,
    model: Model,
    context: FitContext,
    checkpoints: Checkpoints,
    bar: tqdm[Any],
) -> Ending:
    """Train to the end, with history, progress bar, checkpoints and signals.

    Parameters
    ----------
    run : Run
        New or resumed run; changed in place.
    batches : Batches
        Batches of the whole fit.
    model : Model
        Networks and settings of the run.
    context : FitContext
        Context of the fit.
    checkpoints : Checkpoints
        Checkpoints of the fit.
    bar : tqdm
        Progress bar that counts images.

    Returns
    -------
    {"done", "stopped", "diverged"}
        "stopped" if Ctrl-C ended the training, possibly within an epoch. "diverged" if the training
        diverged after its first epoch: the function has warned, and the teacher is that of the last
        sound epoch.

    Raises
    ------
    DivergedError
        If the first epoch diverges.
    """
    settings, ranks, folder = run.settings, batches.ranks, checkpoints.folder
    plan = Plan(batches.steps_per_epoch, batches.steps_per_epoch * settings.epochs)
    pace = Pace()
    bar.reset(total=plan.total_steps * settings.batch_size)
    bar.n = bar.initial = run.step * settings.batch_size
    bar.set_description("ExCB")
    checkpoints.write(run)
    saves = ranks.any(folder is not None)[0]
    with (
        compiled(run.networks, wanted=context.parameters["compile"]),
        deferred_signals(saves=saves) as signals,
    ):
        requests = _StopRequests(signals, ranks)
        read = _read_in_step(
            batches.from_step(run.step), requests, on_error=lambda: checkpoints.write(run)
        )
        for divergence in run.steps(read, plan, seed=batches.seed, ranks=ranks):
            bar.update(settings.batch_size)
            if (seconds := pace.step()) is not None and ranks.first:
                left = seconds * (plan.total_steps - run.step)
                warn_if_long(left, context.parameters, model.facts, context.device)
            if divergence is not None:
                return _diverged(run, divergence.loss, batches.rows(divergence.step), divergence)
            loss, epoch_ends = math.inf, run.step % plan.steps_per_epoch == 0
            if epoch_ends:
                summary = run.summary()
                loss = summary["loss"]
                if not run.monitor.check_finite(summary):
                    return _diverged(run, loss)
                bar.set_postfix_str(
                    f"epoch {run.epoch}/{settings.epochs}, loss {loss:.3f}, "
                    f"empty before balancing {summary['empty_fraction_plain']:.1%}"
                )
                run.end_epoch(summary)
            due = folder is not None and folder.due(run.step, epoch_ends=epoch_ends)
            if requests.save or requests.stop or due or run.step == plan.total_steps:
                checkpoints.write(run, loss)
            if requests.save:
                requests.pass_on()
            if requests.stop:
                return "stopped"
        return "stopped" if ranks.any(signals.stop)[0] else "done"  # Ctrl-C after the last step


def _diverged(
    run: Run, loss: float, rows: Sequence[int] = (), divergence: Divergence | None = None
) -> Ending:
    """Restore the last sound teacher."""
    epoch = run.epoch
    run.record = EpochRecord(run.settings.K, run.device)
    run.monitor.recover(epoch, loss, rows, divergence)
    return "diverged"


class _StopRequests:
    """Requests of signals to stop or to save, which all ranks follow after the same step.

    With several ranks, these are the requests that any rank had received when it read the batch of
    the step.

    Parameters
    ----------
    signals : SignalRequests
        Signals to this process.
    ranks : Ranks
        Processes that train together.
    """

    def __init__(self, signals: SignalRequests, ranks: Ranks) -> None:
        self._signals = signals
        self._stop = self._save = False
        self.ranks = ranks

    @property
    def stop(self) -> bool:
        """Whether to end the training after this step."""
        return self._stop if self.ranks.count > 1 else self._signals.stop

    @property
    def save(self) -> bool:
        """Whether to save after this step, because the process then ends."""
        return self._save if self.ranks.count > 1 else self._signals.save

    def exchange(self, *, failed: bool) -> bool:
        """Exchange requests among all ranks; return whether one of them has failed."""
        found = self.ranks.any(failed, self._signals.stop, self._signals.save)
        failed, self._stop, self._save = found
        return failed

    def pass_on(self) -> None:
        """Let SIGTERM take its usual effect here, and end the fit on the other ranks."""
        if self._signals.save:
            self._signals.pass_on()
        if self.ranks.count > 1:
            raise RankError("The fit ends, because one of its processes received SIGTERM.")


def _read_in_step(
    batches: Iterator[Batch], requests: _StopRequests, on_error: Callable[[], None]
) -> Iterator[Batch]:
    """Yield the batches; if a rank cannot read its batch, save and raise on all ranks."""
    while True:
        batch = error = None
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as raised:
            error = raised
        if requests.exchange(failed=error is not None):
            on_error()
            requests.ranks.fail(error)
        assert batch is not None
        yield batch
