"""What is kept of each epoch of a fit: the loss, and how the clusters fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sklearn_excb.training import StepReport


def filling(counts: torch.Tensor, suffix: str = "") -> dict[str, float]:
    """Occupancy of the clusters by their counts (K,), under names with a suffix."""
    from evaluation.occupancy import cluster_occupancy

    numbers = np.repeat(np.arange(len(counts)), counts.cpu().numpy())
    occupancy = cluster_occupancy(numbers, len(counts))
    return {
        f"empty_fraction{suffix}": occupancy.empty_fraction,
        f"largest_relative_size{suffix}": occupancy.largest_relative_size,
        f"effective_clusters{suffix}": occupancy.effective_clusters,
    }


class EpochRecord:
    """Running sums over an epoch; they stay on the device until the epoch ends.

    Parameters
    ----------
    n_clusters : int
        K.
    device : torch.device
        Of the reports.
    """

    def __init__(self, n_clusters: int, device: torch.device) -> None:
        self._n_clusters = n_clusters
        self._losses = torch.zeros(3, device=device)
        self._changed = torch.zeros((), device=device)
        self._balanced = torch.zeros(n_clusters, dtype=torch.int64, device=device)
        self._plain = torch.zeros_like(self._balanced)
        self._steps = 0

    def add(self, report: StepReport) -> None:
        """Take in a step."""
        self._losses += torch.stack(list(report.loss))
        self._changed += (report.labels != report.plain_labels).float().mean()
        for counts, labels in ((self._balanced, report.labels), (self._plain, report.plain_labels)):
            counts += torch.bincount(labels.flatten(), minlength=self._n_clusters)
        self._steps += 1

    def summary(self, epoch: int) -> dict[str, Any]:
        """Entry of ``history_``: means of the losses, occupancy by the epoch's labels."""
        loss, projector, predictor = (self._losses / self._steps).tolist()
        return {
            "epoch": epoch,
            "loss": loss,
            "projector_loss": projector,
            "predictor_loss": predictor,
            "relabelled_fraction": float(self._changed / self._steps),
            **filling(self._balanced, ""),
            **filling(self._plain, "_plain"),
        }
