"""History of a fit: the losses of each epoch, and how the clusters fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.method.balancing import count_labels
from sklearn_excb.training.loop import StepReport

_MEANS = (
    *("loss", "projector_loss", "predictor_loss"),
    *("teacher_entropy", "student_entropy"),
    "relabelled_fraction",
)
MEANINGS = {  # explanations of the keys of an entry, shown in the report
    "loss": "mean of the projector and predictor losses; training starts near log K, and a loss "
    "that stays there means that nothing is learned",
    "projector_loss": "cross-entropy between the teacher's assignments and those of the student's "
    "projections",
    "predictor_loss": "cross-entropy between the teacher's assignments and those of the student's "
    "predictions",
    "teacher_entropy": "mean entropy of the teacher's assignments: 1 if all clusters are equally "
    "probable, 0 if the assignments are certain",
    "student_entropy": "mean entropy of the student's assignments, on the same scale",
    "relabelled_fraction": "share of the labels that balancing changed",
}
_OCCUPANCIES = {
    "empty_fraction": "share of empty clusters",
    "largest_relative_size": "size of the largest cluster, divided by the mean size",
    "effective_clusters": "number of equally large clusters with the same entropy",
}
_MEASURED = {  # by the endings of their names
    "": "when predict labels the training images, before and after training",
    "_unsettled": "after training, before the centroids settle",
    "_balanced": "in an epoch, by the balanced labels that the network is trained on",
    "_plain": "in an epoch, by the labels that the same crops have without balancing",
}
MEANINGS |= {
    name + ending: f"{what} {when}"
    for name, what in _OCCUPANCIES.items()
    for ending, when in _MEASURED.items()
}


def filling(labels: npt.NDArray[np.int64], n_clusters: int, suffix: str = "") -> dict[str, float]:
    """Return the occupancy of the clusters by labels, with a suffix on every name."""
    from sklearn_excb.evaluation import cluster_occupancy

    occupancy = cluster_occupancy(labels, n_clusters)
    return {name + suffix: getattr(occupancy, name) for name in _OCCUPANCIES}


def _of_counts(counts: Tensor, suffix: str) -> dict[str, float]:
    return filling(np.repeat(np.arange(len(counts)), counts.cpu().numpy()), len(counts), suffix)


def entry(
    epoch: int,
    *,
    n_clusters: int,
    inference: npt.NDArray[np.int64] | None = None,
    measured: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return an entry of ``history_`` with every key; NaN means that nothing was measured.

    Parameters
    ----------
    epoch : int
        Number of the epoch; 0 is the untrained network.
    n_clusters : int
        Number of clusters K.
    inference : ndarray of shape (n_samples,), optional
        Labels of all training samples by plain inference.
    measured : mapping, optional
        Losses of the epoch, and occupancy by the labels of its views.
    """
    fillings = [name + ending for ending in _MEASURED for name in _OCCUPANCIES]
    empty = dict.fromkeys([*_MEANS, *fillings], float("nan"))
    plain = {} if inference is None else filling(inference, n_clusters)
    return {"epoch": epoch, **empty, **(measured or {}), **plain}


class EpochRecord:
    """Running sums over an epoch, which stay on the device until the epoch ends.

    Parameters
    ----------
    n_clusters : int
        Number of clusters K.
    device : torch.device
        Device of the reports.
    """

    def __init__(self, n_clusters: int, device: torch.device) -> None:
        self._n_clusters = n_clusters
        self._sums = torch.zeros(len(_MEANS), device=device)
        self._balanced = torch.zeros(n_clusters, dtype=torch.int64, device=device)
        self._plain = torch.zeros_like(self._balanced)
        self._steps = 0

    def add(self, report: StepReport) -> None:
        """Add the report of a step."""
        loss, labels, plain_labels, entropies = report.outcome
        changed = (labels != plain_labels).float().mean()
        self._sums += torch.stack([*loss, *entropies, changed])
        self._balanced += count_labels(labels, self._n_clusters)
        self._plain += count_labels(plain_labels, self._n_clusters)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over the steps so far."""
        sums = {"sums": self._sums, "balanced": self._balanced, "plain": self._plain}
        return {**sums, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums that :meth:`state_dict` returned."""
        self._sums.copy_(state["sums"])
        self._balanced.copy_(state["balanced"])
        self._plain.copy_(state["plain"])
        self._steps = state["steps"]

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self._steps

    def summary(self, epoch: int) -> dict[str, Any]:
        """Return the entry of ``history_``: mean losses, and occupancy by the epoch's labels."""
        measured = dict(zip(_MEANS, (self._sums / self._steps).tolist(), strict=True))
        measured |= _of_counts(self._balanced, "_balanced") | _of_counts(self._plain, "_plain")
        return entry(epoch, n_clusters=self._n_clusters, measured=measured)
