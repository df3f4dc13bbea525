"""Context of a fit: the user's parameters, and where the fit runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from sklearn_excb.runtime.process_state import seed_from
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.runtime.rendezvous import join
from sklearn_excb.settings.validation import check_parameters
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

    @classmethod
    def of(cls, estimator: Any, random_state: Any) -> Self:
        """Check the parameters of an estimator, meet the other ranks, and draw the seed.

        Parameters
        ----------
        estimator : ExCBEstimator
            Fitted or not. A warm start goes on from its last fit.
        random_state : int, RandomState or None
            Gives the seed.

        Raises
        ------
        ValueError
            If a parameter cannot be used.
        RankError
            If the other ranks do not come.
        """
        parameters = estimator.get_params(deep=False)
        check_parameters(parameters)
        ranks, device = join(parameters["device"], parameters["devices"])
        begins = not parameters["warm_start"] or "_online" in estimator.__dict__
        before = None if begins else estimator.__dict__.get("_fitted")
        return cls(
            parameters,
            seed_from(random_state),
            device,
            ranks,
            previous=None if before is None else before.state,
            fitted_before=before is not None,
        )
