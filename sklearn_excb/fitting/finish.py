"""How a fit ends: centroids that settle, labels by plain inference, and how the clusters fill."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.history import filling
from sklearn_excb.training.settling import settle_teacher

Labels = npt.NDArray[np.int64]


def settled_labels(
    teacher: ClusterNetwork,
    inputs: Callable[[], Iterable[Tensor]],
    labels: Callable[[], Labels],
    settings: Settings,
    *,
    n_samples: int,
    seed: int,
    ranks: Ranks,
) -> tuple[Labels, dict[str, float]]:
    """Settle a teacher's centroids, and label the samples of a fit.

    Parameters
    ----------
    teacher : ClusterNetwork
        Changed in place.
    inputs : callable
        Gives what the centroids settle on: this rank's share.
    labels : callable
        Gives the labels of all samples, by the teacher as it is.
    settings : Settings
        Of the fit.
    n_samples : int
        Inputs of all ranks; with 0 nothing settles.
    seed : int
        Of their order.
    ranks : Ranks
        Those that fit together.

    Returns
    -------
    labels : ndarray of shape (n,), int64
    filled : dict
        How the clusters fill, and how they did before: entries of the history.
    """
    before = None
    if n_samples:
        before = settle_teacher(
            teacher, inputs(), settings, n_samples=n_samples, seed=seed, ranks=ranks
        )
    last = labels()
    before = last if before is None else before
    return last, filling(last, settings.K) | filling(before, settings.K, "_unsettled")
