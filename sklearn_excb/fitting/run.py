"""Training runs: everything that the steps change, which can be saved after any step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sklearn_excb.method.balancing import Balancing
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.runtime.process_state import generator_states
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import build_balancing
from sklearn_excb.training.collapse import CollapseMonitor
from sklearn_excb.training.gradients import Divergence, GradientMonitor
from sklearn_excb.training.history import EpochRecord
from sklearn_excb.training.loop import train
from sklearn_excb.training.optimizer import Plan, build_optimizer, build_scaler
from sklearn_excb.views.batches import Batch


@dataclass
class Run:
    """Training state: everything that the steps of a training change.

    Learning rates, temperatures, the order of the data and the draws of a step are functions of the
    seed and the number of the step, and are not saved.

    Attributes
    ----------
    settings : Settings
        Settings of the fit.
    device : torch.device
        Device of the batches and the networks.
    networks : StudentTeacher
        Student and teacher.
    balancing : Balancing
        Cluster sizes, or the state of a baseline.
    optimizer : Optimizer
        Optimizer of the student.
    scaler : GradScaler
        Scaler of the loss in float16.
    record : EpochRecord
        Sums over the steps of the current epoch.
    monitor : CollapseMonitor
        Early warnings, and the last sound teacher.
    history : list of dict
        One entry per completed epoch; epoch 0 is the untrained network.
    step : int
        Number of completed steps.
    generators : dict
        States of the random generators after the last step.
    best : float
        Lowest loss of an epoch that ended with a checkpoint.
    """

    settings: Settings
    device: torch.device
    networks: StudentTeacher
    balancing: Balancing
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    record: EpochRecord
    monitor: CollapseMonitor
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
        n_samples: int,
    ) -> Run:
        """Build a run before its first step, for epochs of ``n_samples`` samples."""
        return cls(
            settings,
            device,
            networks,
            build_balancing(settings, device),
            build_optimizer(networks.student, settings),
            build_scaler(settings, device),
            EpochRecord(settings.K, device),
            CollapseMonitor(networks.teacher, settings, settings.steps_per_epoch(n_samples)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the training state, without copying it."""
        return {
            "step": self.step,
            "networks": self.networks.state_dict(),
            "balancing": self.balancing.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "record": self.record.state_dict(),
            "history": self.history,
            "warned": self.monitor.warned,
            "generators": self.generators,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int, *, within: bool) -> None:
        """Load a training state; the caller restores the random generators.

        Parameters
        ----------
        state : mapping
            Training state that :meth:`state_dict` returned.
        step : int
            Step from which to resume.
        within : bool
            Whether the run resumes within the epoch of the training state, or begins a new epoch.

        Raises
        ------
        ValueError
            If the training state belongs to other networks.
        """
        try:
            self.networks.load_state_dict(state["networks"])
        except RuntimeError as error:
            raise ValueError(
                f"The checkpoint belongs to another network. Pass the backbone of the run. {error}"
            ) from error
        self.balancing.load_state_dict(state["balancing"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # missing in older checkpoints
            self.scaler.load_state_dict(state["scaler"])
        self._match_memory_format()
        if within:
            self.record.load_state_dict(state["record"])
        self.history = [dict(of_epoch) for of_epoch in state["history"]]
        self.step = step
        self.generators = state["generators"]
        self.best = state["best"]
        self.monitor.warned = state["warned"]
        if self.step:
            self.monitor.keep(f"after step {self.step}")

    def steps(
        self, batches: Iterable[Batch], plan: Plan, *, seed: int, ranks: Ranks = ALONE
    ) -> Iterator[Divergence | None]:
        """Take a step with each batch.

        Parameters
        ----------
        batches : iterable of Batch
            Batches from the next step on.
        plan : Plan
            Length of the training.
        seed : int
            Seed of all random draws.
        ranks : Ranks, default=ALONE
            Processes that train together.

        Yields
        ------
        Divergence or None
            Divergence of the step, if there is one. On an accelerator, this is checked every few
            steps and at the end of an epoch, so a divergence may show some steps late.
        """
        gradients = GradientMonitor(self.networks.student, self.scaler)
        for report in train(
            self.networks,
            self.balancing,
            self.optimizer,
            batches,
            self.settings,
            plan,
            seed=seed,
            first_step=self.step,
            ranks=ranks,
            scaler=self.scaler,
        ):
            self.record.add(report)
            self.step = report.step + 1
            self.generators = generator_states()
            epoch_ends = self.step % plan.steps_per_epoch == 0
            yield gradients.check(report) or (gradients.synchronize() if epoch_ends else None)
        if self.record.steps and (divergence := gradients.synchronize()):
            yield divergence

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1."""
        return self.history[-1]["epoch"] + 1

    def summary(self) -> dict[str, Any]:
        """Return the entry of the current epoch."""
        return self.record.summary(self.epoch)

    def end_epoch(self, summary: dict[str, Any]) -> None:
        """Add the entry of the current epoch to the history, warn of a collapse, begin the next."""
        self.record = EpochRecord(self.settings.K, self.device)
        self.monitor.check(summary)
        self.history.append(summary)

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of all epochs, the current one included."""
        return [*self.history, self.summary()] if self.record.steps else self.history

    def release(self) -> None:
        """Free the memory of optimizer and gradients. The run cannot take further steps."""
        self.history = self.entries()
        self.record = EpochRecord(self.settings.K, self.device)
        self.optimizer.state.clear()
        self.networks.student.zero_grad()

    def _match_memory_format(self) -> None:
        """Restore the memory format of the optimiser's tensors, on which sums depend."""
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor):  # a copy: the caller owns the value
                    like = parameter if value.shape == parameter.shape else value
                    kept[name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
