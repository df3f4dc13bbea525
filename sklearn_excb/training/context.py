"""Context of a fit: the user's parameters, and where the fit runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.storage.packing import Snapshot


@dataclass(frozen=True)
class FitContext:
    """Everything that the stages of a fit need, except the samples.

    Attributes
    ----------
    parameters : mapping
        Parameters of the estimator, each of them valid by itself.
    seed : int
        Seed of all random draws.
    device : torch.device
        Device of the networks.
    ranks : Ranks, default=ALONE
        Processes that fit together. Each of them runs the whole fit on its share of every batch.
    previous : tuple or None, default=None
        Training state that the previous fit kept in memory, packed, for a warm start.
    fitted_before : bool, default=False
        Whether there was a previous fit, with or without a training state.
    """

    parameters: Mapping[str, Any]
    seed: int
    device: torch.device
    ranks: Ranks = ALONE
    previous: Snapshot | None = None
    fitted_before: bool = False

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows a progress bar."""
        return bool(self.parameters["verbose"]) and self.ranks.first
