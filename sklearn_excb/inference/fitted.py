"""The result of a fit."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.storage.packing import Snapshot
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe


@dataclass(frozen=True)
class Fitted:
    """Everything that a fit learned.

    Attributes
    ----------
    teacher : ClusterNetwork
        Teacher network, on the CPU and in evaluation mode.
    settings : Settings
        Parameters of the fit, each of them resolved.
    recipe : ViewRecipe or RowRecipe
        Views of the samples, and the statistics that normalise them for inference.
    n_backbone_features : int
        Number of features that the backbone computes.
    image_shape : tuple of int
        Typical (height, width) of the images; (0, 0) for rows.
    labels : ndarray of shape (n_samples,)
        Cluster of each training sample. Empty for streams, ``partial_fit``, checkpoints and
        networks that others trained.
    history : list of dict
        An entry for each epoch; epoch 0 is the untrained network.
    group_centroids : ndarray of shape (K, d), float32, or None
        Points that represent the clusters when they are merged into groups. None where there are no
        labels.
    seed : int or None
        Seed of all random draws.
    state : tuple or None
        Packed training state, from which a warm start continues.
    stopped : bool
        Whether Ctrl-C ended the training.
    """

    teacher: ClusterNetwork
    settings: Settings
    recipe: ViewRecipe | RowRecipe
    n_backbone_features: int
    image_shape: tuple[int, int]
    labels: npt.NDArray[np.int64]
    history: list[dict[str, Any]]
    group_centroids: npt.NDArray[np.float32] | None = None
    seed: int | None = None
    state: Snapshot | None = None
    stopped: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes with all tensors on the CPU, so that any machine can unpickle."""
        return vars(self) | {"teacher": on_cpu(self.teacher)}


def on_cpu(network: ClusterNetwork) -> ClusterNetwork:
    """Return a copy on the CPU; it shares memory with a network that is there.

    The network itself is not moved, because another thread may be using it.
    """
    there: dict[int, Any] = {}
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        there[id(tensor)] = tensor.detach().cpu()
        if isinstance(tensor, nn.Parameter):
            there[id(tensor)] = nn.Parameter(there[id(tensor)], tensor.requires_grad)
    return copy.deepcopy(network, there)
