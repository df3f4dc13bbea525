"""Resume a run: find it, compare it with the fit, and adopt its resolved parameters."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from typing import Any

import torch

from sklearn_excb.data.fingerprints import changes, frozen_fingerprint, parameter_fingerprint
from sklearn_excb.exceptions import CheckpointWarning
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.storage.checkpoint_folder import CheckpointFolder
from sklearn_excb.storage.packing import unpack
from sklearn_excb.training.context import FitContext

_PACKAGES = ("sklearn_excb", "torch", "torchvision", "timm", "numpy")
# parameters that weights and moments depend on
_STRUCTURE = (
    *("K", "backbone", "freeze_backbone", "n_channels"),
    *("head_width", "optimizer", "balancing"),
)
_ALL = frozenset(field.name for field in fields(Settings)) - {"n_channels"}  # a fact of the data


def describe_fit(
    fingerprint: Mapping[str, Any], parameters: Mapping[str, Any], n_ranks: int = 1
) -> dict[str, Any]:
    """Describe a fit by its data, its parameters, and the versions and machine that it runs on.

    Parameters
    ----------
    fingerprint : mapping
        Fingerprint of the data, as :func:`sklearn_excb.data.fingerprints.source_fingerprint`
        returns it.
    parameters : mapping
        Parameters of the estimator.
    n_ranks : int, default=1
        Number of processes that fit together.
    """
    return {
        "parameters": parameter_fingerprint(parameters),
        "frozen": frozen_fingerprint(parameters),
        "data": fingerprint,
        "versions": {
            **{name: _version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            **({"processes": n_ranks} if n_ranks > 1 else {}),
        },
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe in words how the data and parameters of two fits differ."""
    of_parameters = changes(before["parameters"], now["parameters"])
    others = ["the frozen weights changed"] if before["frozen"] != now["frozen"] else []
    of_data = [f"of X, {text}" for text in changes(before["data"], now["data"])]
    return of_parameters + others + of_data


def check_same_fit(fingerprint: Callable[[], Mapping[str, Any]], context: FitContext) -> None:
    """Check before the first step that all ranks run the same fit.

    Parameters
    ----------
    fingerprint : callable
        Function that returns the fingerprint of the data. It is only called with several ranks.
    context : FitContext
        Context of the fit.

    Raises
    ------
    RankError
        If data, parameters, an integer ``random_state`` or versions differ.
    """
    if context.ranks.count == 1:
        return
    description: dict[str, Any] = {}
    with context.ranks.together():
        description |= describe_fit(fingerprint(), context.parameters)
    if isinstance(context.parameters["random_state"], Integral):
        description["parameters"]["random_state"] = context.seed

    def unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        return differences(first, other) + changes(first["versions"], other["versions"])

    context.ranks.agree(description, unlike)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # imported from its source folder
        return None


@dataclass(frozen=True)
class PreviousRun:
    """Run that a fit resumes, or from which a warm start continues.

    Attributes
    ----------
    state : dict
        Training state of the run (see
        :meth:`sklearn_excb.fitting.run.Run.state_dict`), with its description under
        "about".
    differing : list of str
        Differences between that fit and this one, in words. Empty if the fit resumes the run
        unchanged.
    """

    state: Mapping[str, Any]
    differing: list[str]

    def seed(self, random_state: Any, drawn: int) -> int:
        """Return the seed of the run, or the drawn one if a warm start passes another integer."""
        return drawn if self.differing and isinstance(random_state, Integral) else self._run["seed"]

    def parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with "auto" replaced by the values of the run.

        A rule of "auto" may have changed since, or the machine on which ``micro_batch`` depends. A
        warm start with differences only keeps the values on which the networks depend.
        """
        names = _ALL & {*_STRUCTURE, "image_size", "local_size"} if self.differing else _ALL
        if self._run["data"]["kind"] == "rows":
            names -= {"image_size", "local_size", "flip"}
        if self._run["parameters"]["freeze_backbone"]:
            names -= {"local_size", "flip"}
        before, settings = self._run["parameters"], self._run["network"]["settings"]
        return {
            name: settings[name] if name in names and _both_auto(before[name], value) else value
            for name, value in parameters.items()
        }

    def first_step(self, settings: Settings, n_samples: int) -> tuple[int, bool]:
        """Return the step to resume from, and whether epochs have the same length as before.

        If they do, the run continues within the epoch of the checkpoint.

        Raises
        ------
        ValueError
            If the networks differ, or ``epochs`` is less than the number of epochs so far.
        """
        before, now = self._run["network"]["settings"], settings.as_dict()
        others = changes({n: before[n] for n in _STRUCTURE}, {n: now[n] for n in _STRUCTURE})
        if others:
            raise ValueError(
                f"A warm start needs the networks of the previous fit, but {', '.join(others)}. "
                "Undo the changes, or start anew with warm_start=False and another checkpoint_dir."
            )
        if settings.freeze_backbone and not self._run["network"]["head"].get("standardized"):
            raise ValueError(
                "The run was started by an earlier version, whose projector for frozen backbones "
                "had hidden layers. Resume with that version, or start anew with warm_start=False "
                "and another checkpoint_dir."
            )
        per_epoch = settings.steps_per_epoch(n_samples)
        step, was = self.state["step"], self._run["steps_per_epoch"]
        first = step if per_epoch == was else step // was * per_epoch
        if first > settings.epochs * per_epoch:
            raise ValueError(
                f"epochs={settings.epochs}, but epoch {-(-step // was)} has already started. "
                "epochs includes the epochs before a warm start: raise it."
            )
        return first, per_epoch == was

    @property
    def _run(self) -> Mapping[str, Any]:
        return self.state["about"]


def find_previous_run(
    folder: CheckpointFolder | None,
    fingerprint: Callable[[], Mapping[str, Any]],
    context: FitContext,
) -> tuple[PreviousRun | None, dict[str, Any]]:
    """Find the run that a fit resumes.

    Parameters
    ----------
    folder : CheckpointFolder or None
        Folder of the checkpoints.
    fingerprint : callable
        Function that returns the fingerprint of the data. It is only called if there is a folder,
        or for a warm start.
    context : FitContext
        Context of the fit.

    Returns
    -------
    previous : PreviousRun or None
        Run to resume; None if the fit starts anew.
    description : dict
        Description of the fit for its checkpoints; empty if it writes none.

    Raises
    ------
    ValueError
        If data or parameters differ from those of the previous run, and this is no warm start; the
        message names them. If ``resume`` requires a checkpoint and there is none, or forbids one
        and there is one. If a warm start follows a fit that kept no training state.
    """
    parameters = context.parameters
    if folder is None and not parameters["warm_start"]:
        now: dict[str, Any] = {}
    else:
        now = describe_fit(fingerprint(), parameters, context.ranks.count)
    return _previous_run(folder, now, context), now


def _previous_run(
    folder: CheckpointFolder | None, now: Mapping[str, Any], context: FitContext
) -> PreviousRun | None:
    parameters = context.parameters
    kept = unpack(*context.previous) if context.previous else None
    resume, warm = parameters["resume"], parameters["warm_start"]
    if resume is True and folder is None:
        raise ValueError("resume=True needs a checkpoint_dir to resume from.")
    state = None if folder is None else folder.newest()
    if folder is not None and state is None and resume is True:
        raise ValueError(f"resume=True, but {folder.path} holds no checkpoint.")
    if folder is not None and state is not None and resume is False:
        raise ValueError(
            f"resume=False, but {folder.path} holds checkpoints of a run. Resume the run "
            '(resume="auto"), choose another checkpoint_dir, or remove the checkpoints.'
        )
    if state is None and warm and kept is None and context.fitted_before:
        raise ValueError(
            "warm_start=True, but the previous fit kept no training state: it had "
            "warm_start=False, was a partial_fit, diverged or was loaded. Set warm_start=True "
            "before the first fit, or pass the checkpoint_dir of the previous fit."
        )
    state = kept if state is None and warm else state
    if state is None:
        return None
    before = state["about"]
    differing = differences(before, now)
    random_state = parameters["random_state"]
    if isinstance(random_state, Integral) and int(random_state) != before["seed"]:
        differing.append(f"random_state was {before['seed']}, now {random_state}")
    if differing and not warm:
        assert folder is not None  # only a warm start goes by a state in memory
        raise ValueError(
            f"{folder.path} holds a run that this fit cannot resume: {'; '.join(differing)}. Undo "
            "the changes, choose another checkpoint_dir, or set warm_start=True to continue from "
            "there with the changes. Each fit of a search needs a folder of its own."
        )
    if None not in (before["frozen"], now["frozen"]) and before["frozen"] != now["frozen"]:
        raise ValueError(
            "A warm start needs the frozen backbone of the previous fit, which learned from its "
            "features, but the weights differ. Restore the weights, or start anew with "
            "warm_start=False and another checkpoint_dir."
        )
    others = changes(before["versions"], now["versions"])
    if others and not differing:
        warn_caller(
            f"The run resumes with other packages or threads ({'; '.join(others)}). Its result may "
            "differ from that of an uninterrupted run in the last bits.",
            CheckpointWarning,
        )
    return PreviousRun(state, differing)


def warn_nothing_to_train(epochs: int) -> None:
    """Warn that a warm start has nothing to train."""
    warn_caller(
        f"The warm start has nothing to train: epochs={epochs} are done. epochs includes the "
        "epochs before a warm start: raise it.",
        CheckpointWarning,
    )


def _both_auto(*values: Any) -> bool:
    return all(isinstance(value, str) and value == "auto" for value in values)
