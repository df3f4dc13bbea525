"""Opening of samples: of any kind for a fit, and of the fitted kind for inference."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data
from torch import Tensor

from sklearn_excb.data.columns import check_unmasked, plain_collection
from sklearn_excb.data.input_errors import (
    check_several,
    for_rows,
    images_for_rows,
    one_image_for_several,
    rows_for_images,
)
from sklearn_excb.data.open_source import are_rows, open_source
from sklearn_excb.data.pixels import tensor_array
from sklearn_excb.data.sources import Rows, Source
from sklearn_excb.data.unusable_images import warn_if_nearly_black, warn_unread
from sklearn_excb.inference.learned import INPUT_FACTS
from sklearn_excb.runtime.process_state import usual_modes
from sklearn_excb.settings.validation import check_columns


@usual_modes()
def open_samples(estimator: Any, X: Any, *, fitting: bool) -> Source:
    """Open the samples that a user passes to an estimator.

    Parameters
    ----------
    estimator : ExCBEstimator
        Estimator, whose ``n_features_in_`` and ``feature_names_in_`` are set in a fit on rows.
    X : array, tensor, list, path or data set
        Images or rows.
    fitting : bool
        Whether the samples are for a fit. If not, they have to be of the kind that the estimator
        was fitted on.

    Raises
    ------
    ValueError
        If X cannot be used, or is not of the fitted kind.
    """
    X = plain_collection(X)
    holds_rows = are_rows(X)
    if fitting:
        for name in INPUT_FACTS:
            estimator.__dict__.pop(name, None)
    elif holds_rows == hasattr(estimator, "image_shape_"):
        if holds_rows:
            came, was = "2-D rows", "images"
            hint = rows_for_images(X, estimator.image_shape_, estimator.n_channels_)
        else:
            came, was = "images", "2-D rows"
            hint = images_for_rows(X, estimator.n_features_in_)
        raise ValueError(
            f"X holds {came}, but this {type(estimator).__name__} was fitted on {was}. {hint}"
        )
    if holds_rows:
        check_columns(X)
        X = _without_tensors(X)
        for row in X if isinstance(X, (list, tuple)) else ():
            check_unmasked(row)
        types, least = [np.float32, np.float64], 2 if fitting else 1
        try:
            rows = validate_data(estimator, X, reset=fitting, dtype=types, ensure_min_samples=least)
        except (TypeError, ValueError) as error:
            if why := for_rows(X):
                raise ValueError(why) from error
            raise
        return Rows(rows)
    wanted = estimator.n_channels if fitting else estimator.n_channels_
    if not (fitting and wanted == 1):
        check_several(X, None if fitting else estimator.image_shape_[1])
    source = open_source(X, None if isinstance(wanted, str) else wanted, estimator.on_error)
    warn_unread(source)
    if not fitting:
        warn_if_nearly_black(source, fitting=False)
    if wanted not in ("auto", source.n_channels):
        name = type(estimator).__name__
        said = "n_channels is" if fitting else f"this {name} was fitted on images with"
        hint = "" if fitting else one_image_for_several(X, estimator.n_channels_)
        raise ValueError(
            f"X holds images with {source.n_channels} channels, but {said} {wanted}.{hint}"
        )
    return source


def _without_tensors(X: Any) -> Any:
    """Return rows that are a tensor, or a list of tensors, as arrays; others as they are."""
    if isinstance(X, Tensor):
        return tensor_array(X)
    if isinstance(X, (list, tuple)) and any(isinstance(row, Tensor) for row in X):
        return [tensor_array(row) if isinstance(row, Tensor) else row for row in X]
    return X
