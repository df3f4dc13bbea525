"""A linear classifier on frozen features, as the linear evaluation of embeddings trains it.

By SGD as published (DINO, and the work before it): momentum .9, no weight decay, a cosine to 0, 100
epochs of batches of 1,024, a grid of learning rates of which held-out training rows choose. Or by
L-BFGS: scikit-learn's logistic regression, for features of few images.

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
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._checks import check_choice, check_count, check_positive
from .settings import Scaling, SgdSettings, Views

if TYPE_CHECKING:
    import torch

Solver = Literal["auto", "lbfgs", "sgd"]

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# n * d * C up to which "auto" is L-BFGS. It took less time than SGD with six rates at every size
# that was tried, to 4e8, but it holds logits of all rows, where SGD holds those of a batch.
_SMALL = 10**9


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Linear classifier for embeddings that stay as they are.

    Parameters
    ----------
    solver : {"auto", "lbfgs", "sgd"}, default="auto"
        "sgd" is the published protocol, all learning rates in one pass. "lbfgs" is scikit-learn's
        :class:`~sklearn.linear_model.LogisticRegression`. "auto" is "lbfgs" where rows times
        features times classes are at most 1e9, else "sgd"; with :meth:`fit_views` "sgd".
    C : float, default=1.0
        For "lbfgs": inverse strength of the penalty on the squared weights. Search for it with
        :class:`~sklearn.model_selection.GridSearchCV`.
    max_iter : int, default=1000
        For "lbfgs": the most iterations.
    learning_rates : float or sequence of float, default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
        For "sgd": rates at the start for a batch of 256; applied is rate * batch / 256, ``batch``
        being at most the number of training rows.
    epochs : int, default=100
        For "sgd": passes over the training rows.
    batch_size : int, default=1024
        For "sgd": rows a step.
    weight_decay : float, default=0.0
        For "sgd": on the weights, not on the intercepts.
    validation_fraction : float, default=0.1
        For "sgd": share of the training rows, class by class, that is held out to choose the rate
        by, in (0, 1). With a single rate nothing is held out.
    refit : bool, default=False
        For "sgd": train again with the chosen rate, on all rows. Without it the classifier is the
        chosen head, which never saw the rows that chose it; a refit costs a training with one rate
        more.
    standardize : bool or "auto", default="auto"
        Centre each feature and divide it by its standard deviation, both of the training rows;
        ``coef_`` and ``intercept_`` are for the features as given all the same. "auto" is True for
        "sgd", whose rates mean little unless features have one scale (unit vectors of 256
        features are .06 large), and False for "lbfgs", whose C is then that of scikit-learn. Small
        features are held back by a C of 1: let it be True for them, which also ends sooner.
    random_state : int, RandomState or None, default=None
        Of the held-out rows and the order of the batches. Nothing else is random: heads start at
        zero, and the problem is convex.
    device : str or torch.device, default="auto"
        For "sgd". "auto" is CUDA where there is one, else Apple's MPS, else the CPU.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Class labels, sorted.
    coef_ : ndarray of shape (C, d), or (1, d) for two classes
        Weights, for the features as given.
    intercept_ : ndarray of shape (C,) or (1,)
    solver_ : {"lbfgs", "sgd"}
        What "auto" was.
    learning_rate_ : float
        The chosen one of ``learning_rates``; NaN for "lbfgs".
    validation_scores_ : ndarray of shape (R,)
        Accuracy of each rate on the held-out rows, in [0, 1]; NaN where there was no choice: a
        single rate, or "lbfgs", where R is 1.
    n_iter_ : int
        Iterations of "lbfgs", or epochs.
    n_features_in_ : int
        Number of features seen by ``fit``.
    feature_names_in_ : ndarray of shape (d,)
        Column names, when ``X`` has string ones.

    Notes
    -----
    The rate of highest accuracy on held-out rows is chosen; of equal ones, that of lowest loss
    there. Where each class has a single row, none can be held out, and the training rows choose.
    A ``learning_rate_`` at an end of the grid asks for a wider one.

    References
    ----------
    .. [1] M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
       for the protocol. Theirs are the settings; weights here start at zero.

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
        """Train on embeddings.

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
            If there is one class only, rows are not finite, or a parameter is out of range.
        FloatingPointError
            If the heads of all learning rates diverge.

        Warns
        -----
        ConvergenceWarning
            If "lbfgs" ends at ``max_iter``.
        """
        return self._fit(X, y, None)

    def fit_views(self, views: Views, X: Any, y: Any) -> Self:
        """Train on fresh embeddings of augmented images in every epoch, by SGD.

        Parameters
        ----------
        views : callable
            ``views(epoch, rows)`` gives the embeddings (len(rows), d) of augmented images: epochs
            count from 1, ``rows`` are places in ``X``, an ndarray of int.
        X : array-like of shape (n_samples, d)
            Embeddings of the same images without augmentation: what features are standardised by,
            and where the rates are compared, on held-out rows.
        y : array-like of shape (n_samples,)
            Class labels, of at least two classes.

        Returns
        -------
        self : LinearProbe

        Raises
        ------
        ValueError
            As :meth:`fit`, or if the views are not finite or of another shape.
        """
        return self._fit(X, y, views)

    def decision_function(self, X: Any) -> NDArray:
        """Logits of the classes; for two classes, that of the second over the first.

        Parameters
        ----------
        X : array-like of shape (n_queries, d)
            Real, finite rows.

        Returns
        -------
        logits : ndarray of shape (n_queries, C) or (n_queries,)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> NDArray:
        """Softmax of the logits.

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
        """Return the class of the highest logit for each row.

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
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only, {classes[0]}: a probe tells classes apart and needs at "
                "least two. Look at how the rows were chosen."
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
        """Check everything that does not depend on the data; give the settings of SGD."""
        check_choice(self.solver, "solver", ("auto", "lbfgs", "sgd"))
        if views is not None and self.solver == "lbfgs":
            raise ValueError(
                'solver="lbfgs" sees the same rows in every step, and cannot train on views: '
                'use solver="sgd", or "auto".'
            )
        check_positive(self.C, "C")
        for name in ("max_iter", "epochs", "batch_size"):
            check_count(getattr(self, name), name)
        several = isinstance(self.learning_rates, Sequence | np.ndarray)
        rates: Any = self.learning_rates if several else [self.learning_rates]
        rates = [check_positive(rate, "learning_rates") for rate in rates]
        if not rates:
            raise ValueError("learning_rates is empty, needed at least one rate.")
        decay, held = self.weight_decay, self.validation_fraction
        if not isinstance(decay, Real) or not 0 <= float(decay) < np.inf:
            raise ValueError(f"weight_decay={decay!r}, needed a finite number of at least 0.")
        if not isinstance(held, Real) or not 0 < float(held) < 1:
            raise ValueError(
                f"validation_fraction={held!r}, needed a share of the rows between 0 and 1: "
                "something has to choose the rate. Give a single one, and nothing is held out."
            )
        if self.standardize != "auto" and not isinstance(self.standardize, bool | np.bool_):
            raise ValueError(f"standardize={self.standardize!r}, needed True, False or 'auto'.")
        return SgdSettings(
            tuple(rates),
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=float(decay),
            validation_fraction=float(held),
            refit=bool(self.refit),
            seed=int(check_random_state(self.random_state).randint(2**31)),
            device=self.device,
        )
