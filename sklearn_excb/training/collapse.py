"""Early warnings of a fit: clusters that collapse, and training that diverges."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sklearn_excb.exceptions import CollapseWarning, DivergedError, DivergenceWarning
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.settings.auto_rules import learning_rate
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.final_labels import in_one_cluster, why_alike

if TYPE_CHECKING:
    from sklearn_excb.training.gradients import Divergence

_UNEVEN = 3  # so few clusters may be uneven by nature, with uncertain targets; no warnings
_FEW_CLUSTERS = 0.5  # share of the clusters that could be in effective use
_FEW_LABELLED = 0.25  # the same share, for the labels of inference at the end
_UNLEARNED = 0.97  # share of log K; entropy and loss stay above it in a run that learns nothing
_FIRST_EPOCH = 3  # first epoch whose labels count; earlier ones still depend on the start
_LEARNING, _FEWEST_EPOCHS = 0.25, 5  # share of the run, and epochs, before learning must show
_FEWEST_STEPS = 100  # before this step, plain labels are still those of an untrained network
_PUBLISHED_TEMPERATURE = 0.04
_ROWS_LISTED = 64  # rows that the message about a divergence lists


def collapse(record: Mapping[str, Any], settings: Settings, steps_per_epoch: int) -> str | None:
    """Describe how an epoch shows a collapse, and which parameter to change; None if healthy.

    A healthy run also begins with a loss near log K. Three signs tell it from a collapse:

    - Balancing that works keeps the teacher's labels near K effective clusters from the first
      epochs on. On digits there were .95 K and more; with centering they fell to a fifth of K.
    - Within a quarter of the run, the labels before balancing follow, to .95 K. In runs that ended
      with most clusters empty, they had .2 K to .6 K. This sign is not used if centroids settle.
    - Within a quarter of the run, the targets become certain of something.

    The last entry is also judged by the labels of inference.

    Parameters
    ----------
    record : mapping
        Entry of ``history_`` of a trained epoch. The last entry has ``effective_clusters``.
    settings : Settings
        Settings of the fit.
    steps_per_epoch : int
        Steps per epoch. They count because few images cannot fill K clusters, and few steps teach
        nothing.

    Returns
    -------
    str or None
        Text of a warning, or None.
    """
    found = _finding(record, settings, steps_per_epoch)
    return None if found is None else " ".join(found)


def _finding(
    record: Mapping[str, Any], settings: Settings, steps_per_epoch: int
) -> tuple[str, str] | None:
    """Return what an epoch shows, and the advice; see :func:`collapse`."""
    K, epoch = settings.K, record["epoch"]
    if K <= _UNEVEN:
        return None
    n_images = steps_per_epoch * settings.batch_size
    within_reach = K * -math.expm1(-n_images / K)  # clusters that random labels would use
    trained_enough = epoch * steps_per_epoch >= _FEWEST_STEPS

    def few(used: float, share: float = _FEW_CLUSTERS) -> bool:
        return used - 1 < share * (within_reach - 1)

    inferred = record["effective_clusters"]
    if trained_enough and few(inferred, _FEW_LABELLED):  # False for nan, before the last epoch
        return (
            f"The clusters have collapsed: labels_ has {inferred:.3g} of {K} clusters in effective "
            f"use, and {record['empty_fraction']:.0%} are empty."
        ), _advise_more_steps(settings)
    when = f"in epoch {epoch} of {settings.epochs}"
    balanced, plain = record["effective_clusters_balanced"], record["effective_clusters_plain"]
    if epoch >= _FIRST_EPOCH and few(balanced):
        return (
            f"The clusters are collapsing: {when}, only {balanced:.3g} of {K} are in effective use "
            "after balancing."
        ), _advise_balancing(settings)
    warmup = settings.warmup_epochs
    if epoch < max(_FEWEST_EPOCHS, warmup + _LEARNING * (settings.epochs - warmup)):
        return None
    if trained_enough and few(plain) and not settings.settle_passes:
        return (
            f"The clusters are collapsing: {when}, {balanced:.3g} of {K} are in effective use "
            f"after balancing, but only {plain:.3g} without it, and predict does not balance."
        ), _advise_more_steps(settings)
    measured = (
        f"{when}, the loss is {record['loss']:.2f} (log K is {math.log(K):.2f}), and the entropy "
        f"of the targets is {record['teacher_entropy']:.0%} of its maximum."
    )
    if record["teacher_entropy"] > _UNLEARNED:
        return f"The fit has learned little so far: {measured}", _advise_sharper_targets(settings)
    if record["loss"] > _UNLEARNED * math.log(K):
        return f"The student does not follow the teacher: {measured}", _advise_learning_rate(
            settings
        )
    return None


def _advise_sharper_targets(settings: Settings) -> str:
    """Return the advice for targets that are close to uniform."""
    temperature = settings.teacher_temperature[1]
    if temperature > _PUBLISHED_TEMPERATURE:
        return f"Lower teacher_temperature (now {temperature:g}) or K."
    return (
        f"Raise epochs (now {settings.epochs}) or learning_rate (now {settings.learning_rate:g}), "
        "or lower K."
    )


def _advise_learning_rate(settings: Settings) -> str:
    """Return the advice for a student that does not learn targets, although they are certain."""
    by_rule = learning_rate(settings.optimizer, settings.batch_size)
    if not by_rule / 3 < settings.learning_rate < by_rule * 3:
        return f'Set learning_rate="auto", {by_rule:.2g} here (now {settings.learning_rate:g}).'
    return (
        f"Train longer (epochs is {settings.epochs} now), or raise size_momentum (now "
        f"{settings.size_momentum:g})."
    )


def _advise_more_steps(settings: Settings) -> str:
    """Return the advice for plain labels that do not follow the balanced labels."""
    if settings.balancing not in ("linear", "exponential"):
        return _advise_balancing(settings)
    return (
        f"Train longer (epochs is {settings.epochs} now), or lower batch_size (now "
        f"{settings.batch_size}), learning_rate (now {settings.learning_rate:g}) or K."
    )


def _advise_after(steps: int, settings: Settings) -> str:
    """Return the advice for labels that are all the same although the samples differ."""
    if steps < _FEWEST_STEPS:
        taken = "1 step" if steps == 1 else f"{steps} steps"
        return (
            f"The fit took {taken}, too few to learn from. Raise epochs (now "
            f"{settings.epochs}), or lower batch_size (now {settings.batch_size})."
        )
    return _advise_more_steps(settings)


def _advise_balancing(settings: Settings) -> str:
    """Return the advice for labels that pile up in a few clusters."""
    if settings.balancing not in ("linear", "exponential"):
        return f'balancing="{settings.balancing}" does not prevent this. Set balancing="linear".'
    if settings.count_labels == "plain":
        return 'The sizes count labels before balancing. Set count_labels="balanced".'
    return (
        f"Raise size_momentum (now {settings.size_momentum:g}) to measure sizes over more labels, "
        f"or lower learning_rate (now {settings.learning_rate:g}) or K."
    )


class CollapseMonitor:
    """Monitor that warns once of a collapse, and keeps the last sound teacher.

    A teacher is sound if its weights and the loss are finite.

    Parameters
    ----------
    teacher : ClusterNetwork
        Teacher of the fit, checked after every epoch.
    settings : Settings
        Settings of the fit.
    steps_per_epoch : int
        Steps per epoch of the fit.

    Attributes
    ----------
    warned : bool
        Whether a warning was given, also by the run that this one resumes.
    inputs : callable or None
        Function that returns some of the samples as inference sees them. A warning looks at them
        for its cause.
    """

    def __init__(self, teacher: ClusterNetwork, settings: Settings, steps_per_epoch: int) -> None:
        self._teacher = teacher
        self._settings = settings
        self._steps_per_epoch = steps_per_epoch
        self._kept: dict[str, Any] | None = None
        self._kept_when = ""
        self.warned = self._told = False
        self.inputs: Callable[[], Iterable[Tensor]] | None = None

    def keep(self, when: str) -> None:
        """Keep a copy of the teacher, which is sound.

        Parameters
        ----------
        when : str
            Time of the copy for messages, such as "after epoch 3".
        """
        self._kept_when = when
        state = self._teacher.state_dict()
        self._kept = {name: _copy(value) for name, value in state.items()}

    def check_finite(self, record: Mapping[str, Any]) -> bool:
        """Keep the teacher if the loss and all weights are finite, and return whether they are."""
        if not (math.isfinite(record["loss"]) and all_finite(self._teacher)):
            return False
        self.keep(f"after epoch {record['epoch']}")
        return True

    def check(self, record: Mapping[str, Any]) -> None:
        """Warn of a collapse that an entry of the history shows, unless a warning was given."""
        if self.warned:
            return
        found = _finding(record, self._settings, self._steps_per_epoch)
        if found is not None:
            self._warn(*found)

    def check_labels(self, labels: npt.NDArray[np.int64], steps: int) -> None:
        """Warn of a trained fit whose labels are all the same, unless this process has warned.

        Parameters
        ----------
        labels : ndarray of shape (n_samples,)
            Labels by plain inference at the end.
        steps : int
            Number of training steps so far.
        """
        found = in_one_cluster(labels, self._settings.K)
        if found is not None and steps and not self._told:
            self._warn(found, _advise_after(steps, self._settings))

    def _warn(self, found: str, advice: str) -> None:
        """Warn of what was found; where the samples themselves are the cause, advise on them."""
        self.warned = self._told = True
        cause = None if self.inputs is None else why_alike(self.inputs(), self._settings.K)
        warn_caller(f"{found} {cause or advice}", CollapseWarning)

    def recover(
        self,
        epoch: int,
        loss: float,
        rows: Sequence[int] = (),
        divergence: Divergence | None = None,
    ) -> None:
        """Restore the last sound teacher, with a warning.

        Parameters
        ----------
        epoch : int
            Epoch in which the training diverged.
        loss : float
            Loss at that time.
        rows : sequence of int, optional
            Rows of X in the batch that diverged.
        divergence : Divergence, optional
            Details of the step that diverged.

        Raises
        ------
        DivergedError
            If no epoch was sound.
        """
        rate = f"Lower learning_rate, now {self._settings.learning_rate:g}."
        message = f"Training diverged in epoch {epoch} of {self._settings.epochs}"
        if divergence is None:
            message += f", with a loss of {loss}. {rate}"
        else:
            named = ", ".join(map(str, rows[:_ROWS_LISTED]))
            more = f" and {len(rows) - _ROWS_LISTED} more" if len(rows) > _ROWS_LISTED else ""
            message += f", step {divergence.step + 1}, with a loss of {loss}. {rate} {divergence}"
            message += f" Rows of the batch: {named}{more}." if rows else ""
        if self._kept is None:
            error = DivergedError(message)
            error.rows = list(rows)
            raise error
        self._teacher.load_state_dict(self._kept)
        self.warned = self._told = True
        warn_caller(
            f"{message} The fit stops with the weights it had {self._kept_when}.",
            DivergenceWarning,
        )


def all_finite(module: nn.Module) -> bool:
    """Whether all parameters and running statistics are finite."""
    return all(map(_finite, _learned(module)))


def _learned(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and running statistics; other buffers, such as masks, may be infinite."""
    yield from module.parameters()
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            yield buffer


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _copy(value: Any) -> Any:
    """Copy a tensor to the CPU, or any other object that a module keeps in its state."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
