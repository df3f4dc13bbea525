"""Errors for parameters by names of other libraries, such as ``n_clusters``."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, Self

from sklearn.base import BaseEstimator

P = ParamSpec("P")

_ELSEWHERE = {
    **dict.fromkeys(("n_clusters", "n_components", "k", "kinds", "n_kinds"), "K"),
    **dict.fromkeys(("max_iter", "n_epochs"), "epochs"),
    **dict.fromkeys(("lr", "learning_rate_init"), "learning_rate"),
    **dict.fromkeys(("seed", "random_seed"), "random_state"),
    **dict.fromkeys(("model", "encoder", "arch"), "backbone"),
    "weights": "pretrained",
}


def unknown_name(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """Return an error message for the first unknown name, with the name to use, or None.

    Parameters
    ----------
    owner : str
        Name of the class.
    given : mapping
        Values by name.
    known : iterable of str
        Names of the parameters.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = _ELSEWHERE.get(name) or (near[0] if near else None)
            use = f"use {meant}={str(given[name])[:100]}" if meant else f"see help({owner})"
            kept = "the number of clusters is K, so " if meant == "K" else ""
            return f"{owner} has no parameter {name!r}: {kept}{use}."
    return None


def with_names_checked(init: Callable[P, None]) -> Callable[P, None]:
    """Have ``__init__`` suggest a name for each unknown one; its signature stays the same.

    scikit-learn reads the parameters from the signature, and allows no ``**parameters`` in it.
    """
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(*args: P.args, **given: P.kwargs) -> None:
        if wrong := unknown_name(type(args[0]).__name__, given, known):
            raise TypeError(wrong)
        init(*args, **given)

    return checked


class NamedParameters(BaseEstimator):
    """Estimator whose ``set_params`` suggests a name for an unknown one."""

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name.

        Parameters
        ----------
        **params
            Parameters, as in the constructor.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there is no parameter of this name. The message suggests a name.
        """
        if wrong := unknown_name(type(self).__name__, params, self._get_param_names()):
            raise ValueError(wrong)
        return super().set_params(**params)
