"""What a fit watches for while it trains: clusters that collapse, and a training that diverges."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_excb.auto import Settings
from sklearn_excb.networks import ClusterNetwork

_FEW_CLUSTERS = 0.5  # of K in effective use by the teacher's labels, after balancing
_ALIKE = 0.97  # of the logarithm of K: what targets and loss of a run that learns nothing stay at
_FIRST_EPOCH = 3  # whose labels are looked at; those of the first ones are still those of the start
_LEARNING, _FEWEST_EPOCHS = 0.25, 5  # of the run, until something should have been learned


def collapse(record: Mapping[str, Any], settings: Settings) -> str | None:
    """Say in what way an epoch shows a collapse, and which knob to turn; None in a healthy one.

    A healthy run, too, begins with a loss near log K. What tells them apart: balancing that works
    keeps the teacher's labels near K effective clusters from the first epochs on (digits, .95 K and
    more; those of centering fell to a fifth of K), and within a quarter of the run the targets
    become sure of something.

    Parameters
    ----------
    record : mapping
        Entry of ``history_`` of a trained epoch.
    settings : Settings
        Of the fit.
    """
    K, epoch = settings.K, record["epoch"]
    used = record["effective_clusters_balanced"]
    if epoch >= _FIRST_EPOCH and used < _FEW_CLUSTERS * K:
        return (
            f"only {used:.3g} of {K} clusters are in effective use after balancing. "
            + _more_balance(settings)
        )
    warmup = settings.warmup_epochs
    learned = max(_FEWEST_EPOCHS, warmup + _LEARNING * (settings.epochs - warmup))
    if epoch >= learned and K > 2:
        loss = record["loss"] / math.log(K)
        if loss > _ALIKE or record["teacher_entropy"] > _ALIKE:
            return (
                f"the loss is {record['loss']:.2f}, log K is {math.log(K):.2f}, and targets have "
                f"{record['teacher_entropy']:.0%} of the largest entropy: no image differs. "
                f"Raise learning_rate (now {settings.learning_rate:g}) or batch_size (now "
                f"{settings.batch_size}), or lower K."
            )
    return None


def _more_balance(settings: Settings) -> str:
    """What to do when labels pile up in a few clusters."""
    if settings.balancing not in ("linear", "exponential"):
        return f'balancing="{settings.balancing}" does not hold them apart: set "linear".'
    if settings.count_labels == "plain":
        return 'Sizes are measured before balancing: set count_labels="balanced".'
    return (
        f"Raise size_momentum (now {settings.size_momentum:g}), so that sizes are measured over "
        f"more labels, or lower learning_rate (now {settings.learning_rate:g}) or K."
    )


class Watch:
    """Warns of the first epoch that shows a collapse, and keeps the last teacher that was sound.

    Parameters
    ----------
    teacher : ClusterNetwork
        Of the fit; looked at after every epoch.
    settings : Settings
        Of the fit.
    """

    def __init__(self, teacher: ClusterNetwork, settings: Settings) -> None:
        self._teacher = teacher
        self._settings = settings
        self._kept: dict[str, Tensor] | None = None
        self._warned = False

    def sound(self, record: Mapping[str, Any]) -> bool:
        """Look at an epoch; keep its teacher and return True unless something is not finite."""
        state = self._teacher.state_dict()
        if not (math.isfinite(record["loss"]) and all(_finite(t) for t in state.values())):
            return False
        self._kept = {name: copy.deepcopy(tensor.cpu()) for name, tensor in state.items()}
        reason = None if self._warned else collapse(record, self._settings)
        if reason is not None:
            self._warned = True
            warnings.warn(
                f"The clusters are collapsing: in epoch {record['epoch']} of "
                f"{self._settings.epochs} {reason}",
                ConvergenceWarning,
                stacklevel=5,
            )
        return True

    def recover(self, record: Mapping[str, Any]) -> None:
        """Go back to the last sound teacher, with a warning.

        Raises
        ------
        FloatingPointError
            If no epoch was sound.
        """
        diverged = (
            f"The training diverged in epoch {record['epoch']} of {self._settings.epochs}, with a "
            f"loss of {record['loss']}. Lower learning_rate, now {self._settings.learning_rate:g}."
        )
        if self._kept is None:
            raise FloatingPointError(diverged)
        self._teacher.load_state_dict(self._kept)
        warnings.warn(
            f"{diverged} The fit stops with what it was after epoch {record['epoch'] - 1}.",
            ConvergenceWarning,
            stacklevel=5,
        )


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
