"""Linear classifier on frozen features, for the linear evaluation of embeddings.

One solver is SGD as in the published protocol (DINO and earlier work): momentum .9, no weight
decay, a cosine schedule to 0, 100 epochs, batches of 1,024 rows, and a grid of learning rates from
which held-out training rows choose one. The other solver is L-BFGS, by scikit-learn's logistic
regression, for small sets of images.

Names: ``d`` features, ``C`` classes, ``R`` learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._arrays import for_sklearn, without_torch
from .._checks import check_choice, check_count, check_positive, random_generator
from .settings import Scaling, SgdSettings, Views

if TYPE_CHECKING:
    import torch

Solver = Literal["auto", "lbfgs", "sgd"]

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# Largest n * d * C for which "auto" is L-BFGS. L-BFGS was faster than SGD with six rates at every
# size that was tried, up to 4e8, but it holds the logits of all rows and SGD those of one batch.
_SMALL = 10**9
_MOST_DECAY = 1e6  # as for the estimator: single precision holds all that follows from it


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Linear classifier for frozen embeddings.

    Parameters
    ----------
    solver : {"auto", "lbfgs", "sgd"}, default="auto"
        Optimisation algorithm. "sgd" is the published protocol; it trains all learning rates in one
        pass. "lbfgs" is scikit-learn's :class:`~sklearn.linear_model.LogisticRegression`. "auto" is
        "lbfgs" if rows times features times classes are at most 1e9, otherwise "sgd". With
        :meth:`fit_views`, "auto" is "sgd".
    C : float, default=1.0
        Inverse strength of the penalty on the squared weights, for "lbfgs". Search for it with
        :class:`~sklearn.model_selection.GridSearchCV`.
    max_iter : int, default=1000
        Maximum number of iterations, for "lbfgs".
    learning_rates : float or sequence of float, default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
        Initial learning rates for a batch of 256 rows, for "sgd". The applied rate is
        rate * batch / 256, where ``batch`` is at most the number of training rows.
    epochs : int, default=100
        Number of passes over the training rows, for "sgd".
    batch_size : int, default=1024
        Number of rows per step, for "sgd".
    weight_decay : float, default=0.0
        Weight decay, for "sgd". It applies to the weights, not to the intercepts.
    validation_fraction : float, default=0.1
        Share of the training rows of each class, in (0, 1), that is held out to choose the learning
        rate, for "sgd". With a single rate, no rows are held out.
    refit : bool, default=False
        Whether to train again on all rows with the chosen rate, for "sgd". Without a refit, the
        classifier is the chosen head, which was trained without the held-out rows. A refit costs
        one more training with a single rate.
    standardize : bool or "auto", default="auto"
        Whether to standardise each feature by its mean and standard deviation over the training
        rows. ``coef_`` and ``intercept_`` always apply to the features as given. "auto" is True for
        "sgd", because suitable learning rates depend on the scale of the features (features of
        256-dimensional unit vectors are about .06). "auto" is False for "lbfgs", so that C means
        the same as in scikit-learn. With small features, C=1 penalises too strongly; set
        ``standardize=True``, which also converges sooner.
    random_state : int, RandomState or None, default=None
        Seed of the held-out rows and of the order of the batches. The rest is deterministic: heads
        start at zero, and the problem is convex.
    device : str or torch.device, default="auto"
        Device for "sgd". "auto" is CUDA if available, otherwise Apple's MPS, otherwise the CPU.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Class labels, sorted.
    coef_ : ndarray of shape (C, d), or (1, d) for two classes
        Weights, for the features as given.
    intercept_ : ndarray of shape (C,) or (1,)
        Intercepts, for the features as given.
    solver_ : {"lbfgs", "sgd"}
        Solver that was used.
    learning_rate_ : float
        Chosen learning rate; NaN for "lbfgs".
    validation_scores_ : ndarray of shape (R,)
        Accuracy of each learning rate on the held-out rows, in [0, 1]. NaN if there was nothing to
        choose: with a single rate, or with "lbfgs", where R is 1.
    n_iter_ : int
        Number of iterations of "lbfgs" or of epochs of "sgd".
    n_features_in_ : int
        Number of features seen by ``fit``.
    feature_names_in_ : ndarray of shape (d,)
        Column names of ``X``, if they are strings.

    Notes
    -----
    The chosen learning rate has the highest accuracy on the held-out rows; among equal accuracies,
    it has the lowest loss there. If each class has a single row, no row can be held out, and the
    training rows are used for the choice. If ``learning_rate_`` is the first or last of
    ``learning_rates``, try a wider range.

    References
    ----------
    .. [1] M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
       The protocol and its settings are from this paper; here the weights start at zero.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from evaluation import LinearProbe
    >>> X, y = load_digits(return_X_y=True)
    >>> probe = LinearProbe("sgd", random_state=0).fit(X[:1000], y[:1000])
    >>> bool(probe.score(X[1000:], y[1000:]) > 0.9), probe.validation_scores_.shape
    (True, (6,))
    """

    def __init__(
        self,
        solver: Solver = "auto",
        *,
        C: float = 1.0,
        max_iter: int = 1000,
        learning_rates: float | Sequence[float] = RATES,
        epochs: int = 100,
        batch_size: int = 1024,
        weight_decay: float = 0.0,
        validation_fraction: float = 0.1,
        refit: bool = False,
        standardize: bool | Literal["auto"] = "auto",
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        self.solver: Solver = solver
        self.C = C
        self.max_iter = max_iter
        self.learning_rates = learning_rates
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.refit = refit
        self.standardize: bool | Literal["auto"] = standardize
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> Self:
        """Train on fixed embeddings.

        Parameters
        ----------
        X : array-like of shape (n_samples, d)
            Real, finite rows.
        y : array-like of shape (n_samples,)
            Class labels, integers or strings, of at least two classes.

        Returns
        -------
        self : LinearProbe

        Raises
        ------
        ValueError
            If there is only one class, rows are not finite, or a parameter is out of range.
        FloatingPointError
            If the heads of all learning rates diverge.

        Warns
        -----
        ConvergenceWarning
            If "lbfgs" reaches ``max_iter``.
        """
        return self._fit(X, y, None)

    def fit_views(self, views: Views, X: Any, y: Any) -> Self:
        """Train by SGD on new embeddings of augmented images in every epoch.

        Parameters
        ----------
        views : callable
            Function ``views(epoch, rows)`` that returns embeddings (len(rows), d) of augmented
            images. Epochs are counted from 1; ``rows`` is an integer ndarray of positions in ``X``.
        X : array-like of shape (n_samples, d)
            Embeddings of the same images without augmentation. They determine the standardisation,
            and the held-out ones are used to choose the learning rate.
        y : array-like of shape (n_samples,)
            Class labels of at least two classes.

        Returns
        -------
        self : LinearProbe

        Raises
        ------
        ValueError
            For the reasons given in :meth:`fit`, or if views are not finite or have another shape.
        """
        return self._fit(X, y, views)

    def decision_function(self, X: Any) -> NDArray:
        """Return the logits of the classes; for two classes, the logit of the second one.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows.

        Returns
        -------
        logits : ndarray of shape (n_queries, C), or (n_queries,) for two classes
        """
        check_is_fitted(self)
        X = validate_data(self, for_sklearn(X), dtype=[np.float32, np.float64], reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> NDArray:
        """Return the probabilities of the classes, the softmax of the logits.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows.

        Returns
        -------
        probabilities : ndarray of shape (n_queries, C)
            Rows sum to 1; columns follow ``classes_``.
        """
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return np.stack([expit(-logits), expit(logits)], axis=1)
        return softmax(logits, axis=1)

    def predict(self, X: Any) -> NDArray:
        """Return the class with the highest logit for each row.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows.

        Returns
        -------
        y : ndarray of shape (n_queries,)
        """
        logits = self.decision_function(X)
        codes = (logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)
        return self.classes_[codes]

    def _fit(self, X: Any, y: Any, views: Views | None) -> Self:
        settings = self._check_parameters(views)
        X, y = for_sklearn(X), without_torch(y)
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only, {classes[0]}, expected at least two. Check how the rows "
                "were chosen."
            )
        solver: str = self.solver
        if solver == "auto":
            small = X.size * len(classes) <= _SMALL and views is None
            solver = "lbfgs" if small else "sgd"
        scaled = solver == "sgd" if self.standardize == "auto" else self.standardize
        scaling = Scaling.of(X) if scaled else None
        if solver == "lbfgs":
            rows = scaling(X, X.dtype) if scaling else X
            with config_context(assume_finite=True):  # checked above
                model = LogisticRegression(C=self.C, max_iter=self.max_iter).fit(rows, codes)
            weights, intercept = model.coef_, model.intercept_
            self.n_iter_ = int(model.n_iter_[0])
            rate, scores = np.nan, np.full(1, np.nan)
        else:
            from .sgd import train_and_choose

            chosen = train_and_choose(X, codes, settings, scaling=scaling, views=views)
            weights, intercept = chosen.weights, chosen.intercept
            rate, scores = chosen.rate, chosen.scores
            self.n_iter_ = self.epochs
            if len(classes) == 2:
                weights, intercept = weights[1:] - weights[:1], intercept[1:] - intercept[:1]
        if scaling:
            weights, intercept = scaling.undo(weights, intercept)
        self.classes_, self.solver_ = classes, solver
        self.learning_rate_, self.validation_scores_ = rate, scores
        self.coef_, self.intercept_ = weights.astype(X.dtype), intercept.astype(X.dtype)
        return self

    def _check_parameters(self, views: Views | None) -> SgdSettings:
        """Check the parameters and return the settings of SGD."""
        check_choice(self.solver, "solver", ("auto", "lbfgs", "sgd"))
        if views is not None and self.solver == "lbfgs":
            raise ValueError(
                'solver="lbfgs" needs the same rows in every step and cannot train on views. '
                'Use solver="sgd" or "auto".'
            )
        check_positive(self.C, "C")
        for name in ("max_iter", "epochs", "batch_size"):
            check_count(getattr(self, name), name)
        several = isinstance(self.learning_rates, Sequence | np.ndarray)
        rates: Any = self.learning_rates if several else [self.learning_rates]
        rates = [check_positive(rate, "learning_rates") for rate in rates]
        if not rates:
            raise ValueError("learning_rates is empty, expected at least one rate.")
        decay, held = self.weight_decay, self.validation_fraction
        if not isinstance(decay, Real) or not 0 <= float(decay) <= _MOST_DECAY:
            raise ValueError(
                f"weight_decay={decay!r}, expected a number from 0 to {_MOST_DECAY:g}."
            )
        if not isinstance(held, Real) or not 0 < float(held) < 1:
            raise ValueError(
                f"validation_fraction={held!r}, expected a share of the rows between 0 and 1. To "
                "hold out no rows, pass a single learning rate."
            )
        if self.standardize != "auto" and not isinstance(self.standardize, bool | np.bool_):
            raise ValueError(f"standardize={self.standardize!r}, expected True, False or 'auto'.")
        return SgdSettings(
            tuple(rates),
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=float(decay),
            validation_fraction=float(held),
            refit=bool(self.refit),
            seed=int(random_generator(self.random_state).randint(2**31)),
            device=self.device,
        )
