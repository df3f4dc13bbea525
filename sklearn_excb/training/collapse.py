"""What a fit watches for while it trains: clusters that collapse, and a training that diverges."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_excb.exceptions import CollapseWarning, DivergedError, DivergenceWarning
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.settings.auto_rules import learning_rate
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.gradients import Divergence

_UNEVEN = 3  # so few clusters may be uneven by nature, and their targets unsure: no judgement
_FEW_CLUSTERS = 0.5  # of those that could be in effective use
_FEW_LABELLED = 0.25  # the same, by inference at the end
_ALIKE = 0.97  # of the logarithm of K: what targets and loss of a run that learns nothing stay at
_FIRST_EPOCH = 3  # whose labels are looked at; those of the first ones are still those of the start
_LEARNING, _FEWEST_EPOCHS = 0.25, 5  # of the run, until something should have been learned
_FEWEST_STEPS = 100  # below which plain labels are still those of an untrained network
_PUBLISHED_TEMPERATURE = 0.04
_ROWS_TOLD = 64  # in what is said of a divergence


def collapse(record: Mapping[str, Any], settings: Settings, steps_per_epoch: int) -> str | None:
    """Say in what way an epoch shows a collapse, and which knob to turn; None in a healthy one.

    A healthy run, too, begins with a loss near log K. What tells them apart: balancing that works
    keeps the teacher's labels near K effective clusters from the first epochs on (digits, .95 K and
    more; those of centering fell to a fifth of K); within a quarter of the run the labels before
    balancing follow (.95 K; in runs that ended with most clusters empty, .2 to .6; not judged where
    centroids settle), and the targets become sure of something. The last entry is judged by the
    labels of inference too.

    Parameters
    ----------
    record : mapping
        Entry of ``history_`` of a trained epoch; the last one has ``effective_clusters``.
    settings : Settings
        Of the fit.
    steps_per_epoch : int
        Few images an epoch cannot fill K clusters, and few steps teach nothing.
    """
    K, epoch = settings.K, record["epoch"]
    if K <= _UNEVEN:
        return None
    n_images = steps_per_epoch * settings.batch_size
    within_reach = K * -math.expm1(-n_images / K)  # clusters that random labels would use
    taught = epoch * steps_per_epoch >= _FEWEST_STEPS

    def few(used: float, share: float = _FEW_CLUSTERS) -> bool:
        return used - 1 < share * (within_reach - 1)

    inferred = record["effective_clusters"]
    if taught and few(inferred, _FEW_LABELLED):  # never of nan: not the last epoch
        return (
            f"The clusters have collapsed: labels_ uses {inferred:.3g} of {K} effectively, and "
            f"{record['empty_fraction']:.0%} are empty. {_advise_more_steps(settings)}"
        )
    when = f"in epoch {epoch} of {settings.epochs}"
    balanced, plain = record["effective_clusters_balanced"], record["effective_clusters_plain"]
    if epoch >= _FIRST_EPOCH and few(balanced):
        return (
            f"The clusters are collapsing: {when} only {balanced:.3g} of {K} are in effective use "
            f"after balancing. {_advise_balancing(settings)}"
        )
    warmup = settings.warmup_epochs
    if epoch < max(_FEWEST_EPOCHS, warmup + _LEARNING * (settings.epochs - warmup)):
        return None
    if taught and few(plain) and not settings.settle_passes:
        return (
            f"The clusters are collapsing: {when} balancing uses {balanced:.3g} of {K} clusters, "
            f"but without it, as predict is, {plain:.3g} are in effective use. "
            f"{_advise_more_steps(settings)}"
        )
    sureness = (
        f"{when} the loss is {record['loss']:.2f}, log K is {math.log(K):.2f}, and targets have "
        f"{record['teacher_entropy']:.0%} of the largest entropy."
    )
    if record["teacher_entropy"] > _ALIKE:
        return f"The fit has learned little so far: {sureness} {_advise_sharper_targets(settings)}"
    if record["loss"] > _ALIKE * math.log(K):
        return (
            f"The student does not follow the teacher: {sureness} {_advise_learning_rate(settings)}"
        )
    return None


def _advise_sharper_targets(settings: Settings) -> str:
    """What to do when targets say nothing."""
    temperature = settings.teacher_temperature[1]
    if temperature > _PUBLISHED_TEMPERATURE:
        return f"Lower teacher_temperature (now {temperature:g}) or K."
    return (
        f"Raise epochs (now {settings.epochs}) or learning_rate (now {settings.learning_rate:g}), "
        "or lower K."
    )


def _advise_learning_rate(settings: Settings) -> str:
    """What to do when the student learns nothing of targets that are sure of something."""
    by_rule = learning_rate(settings.optimizer, settings.batch_size)
    if not by_rule / 3 < settings.learning_rate < by_rule * 3:
        return f'Set learning_rate="auto", {by_rule:.2g} here (now {settings.learning_rate:g}).'
    return (
        f"Train longer (epochs, now {settings.epochs}), or raise size_momentum (now "
        f"{settings.size_momentum:g})."
    )


def _advise_more_steps(settings: Settings) -> str:
    """What to do when plain labels do not follow the balanced ones."""
    if settings.balancing not in ("linear", "exponential"):
        return _advise_balancing(settings)
    return (
        f"Train longer (epochs, now {settings.epochs}), or lower batch_size (now "
        f"{settings.batch_size}), learning_rate (now {settings.learning_rate:g}) or K."
    )


def _advise_balancing(settings: Settings) -> str:
    """What to do when labels pile up in a few clusters."""
    if settings.balancing not in ("linear", "exponential"):
        return f'balancing="{settings.balancing}" does not hold them apart: set "linear".'
    if settings.count_labels == "plain":
        return 'Sizes are measured before balancing: set count_labels="balanced".'
    return (
        f"Raise size_momentum (now {settings.size_momentum:g}), so that sizes are measured over "
        f"more labels, or lower learning_rate (now {settings.learning_rate:g}) or K."
    )


class CollapseMonitor:
    """Warns once of a collapse, and keeps the last teacher that was sound.

    Parameters
    ----------
    teacher : ClusterNetwork
        Of the fit; looked at after every epoch.
    settings : Settings
        Of the fit.
    steps_per_epoch : int
        Of the fit.
    """

    def __init__(self, teacher: ClusterNetwork, settings: Settings, steps_per_epoch: int) -> None:
        self._teacher = teacher
        self._settings = settings
        self._steps_per_epoch = steps_per_epoch
        self._kept: dict[str, Any] | None = None
        self._when = ""
        self.warned = False

    def keep(self, when: str) -> None:
        """Keep the teacher as it is: it is sound.

        Parameters
        ----------
        when : str
            As it is told, "after epoch 3".
        """
        self._when = when
        state = self._teacher.state_dict()
        self._kept = {name: _copy(value) for name, value in state.items()}

    def sound(self, record: Mapping[str, Any]) -> bool:
        """Whether everything is finite; if so, its teacher is kept."""
        if not (math.isfinite(record["loss"]) and all_finite(self._teacher)):
            return False
        self.keep(f"after epoch {record['epoch']}")
        return True

    def look(self, record: Mapping[str, Any]) -> None:
        """Warn of a collapse that an entry of the history shows, unless there was a warning."""
        if self.warned:
            return
        reason = collapse(record, self._settings, self._steps_per_epoch)
        if reason is not None:
            self.warned = True
            warn_caller(reason, CollapseWarning)

    def recover(
        self,
        epoch: int,
        loss: float,
        rows: Sequence[int] = (),
        divergence: Divergence | None = None,
    ) -> None:
        """Go back to the last sound teacher, with a warning.

        Parameters
        ----------
        epoch : int
            In which it diverged.
        loss : float
            There.
        rows : sequence of int, optional
            Of the batch in which it showed.
        divergence : Divergence, optional
            What is known of the step.

        Raises
        ------
        DivergedError
            If no epoch was sound.
        """
        rate = f"Lower learning_rate, now {self._settings.learning_rate:g}."
        said = f"The training diverged in epoch {epoch} of {self._settings.epochs}"
        if divergence is None:
            said += f", with a loss of {loss}. {rate}"
        else:
            named = ", ".join(map(str, rows[:_ROWS_TOLD]))
            more = f" and {len(rows) - _ROWS_TOLD} more" if len(rows) > _ROWS_TOLD else ""
            said += f", step {divergence.step + 1}, with a loss of {loss}. {rate} {divergence}"
            said += f" Rows of the batch: {named}{more}." if rows else ""
        if self._kept is None:
            error = DivergedError(said)
            error.rows = list(rows)
            raise error
        self._teacher.load_state_dict(self._kept)
        self.warned = True
        warn_caller(
            f"{said} The fit stops with what it was {self._when}.",
            DivergenceWarning,
        )


def all_finite(module: nn.Module) -> bool:
    """Whether nothing that was learned is NaN or infinite."""
    return all(map(_finite, _learned(module)))


def _learned(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and running statistics; other buffers (masks, say) may hold infinities."""
    yield from module.parameters()
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            yield buffer


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _copy(value: Any) -> Any:
    """A tensor on the CPU; of modules that keep more than tensors, whatever that is."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
