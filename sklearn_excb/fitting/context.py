"""Context of the fit of an estimator."""

from __future__ import annotations

from typing import Any

from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.runtime.process_state import seed_from
from sklearn_excb.runtime.rendezvous import join
from sklearn_excb.settings.validation import check_parameters
from sklearn_excb.training.context import FitContext


def fit_context(estimator: Any) -> FitContext:
    """Check the parameters of an estimator, meet the other ranks, and draw the seed.

    Parameters
    ----------
    estimator : ExCBEstimator
        Estimator, fitted or not.

    Raises
    ------
    ValueError
        If a parameter cannot be used.
    RankError
        If the other ranks do not connect.
    """
    parameters = estimator.get_params(deep=False)
    check_parameters(parameters)
    ranks, device = join(parameters["device"], parameters["devices"])
    begins = not parameters["warm_start"] or "_online" in estimator.__dict__
    before: Fitted | None = None if begins else estimator.__dict__.get("_fitted")
    return FitContext(
        parameters,
        seed_from(parameters["random_state"]),
        device,
        ranks,
        previous=None if before is None else before.state,
        fitted_before=before is not None,
    )
