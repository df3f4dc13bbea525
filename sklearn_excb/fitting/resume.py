"""Resume a run: find it, compare it with the fit, take its resolved parameters."""

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
# what weights and moments are of
_STRUCTURE = (
    *("K", "backbone", "freeze_backbone", "n_channels"),
    *("head_width", "optimizer", "balancing"),
)
_ALL = frozenset(field.name for field in fields(Settings)) - {"n_channels"}  # the data's


def describe_fit(
    fingerprint: Mapping[str, Any], parameters: Mapping[str, Any], n_ranks: int = 1
) -> dict[str, Any]:
    """Describe a fit by its data and parameters, and what it runs on.

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
    """Say in words how two descriptions of a fit differ in data and parameters."""
    of_parameters = changes(before["parameters"], now["parameters"])
    others = ["the frozen weights changed"] if before["frozen"] != now["frozen"] else []
    of_data = [f"of X, {text}" for text in changes(before["data"], now["data"])]
    return of_parameters + others + of_data


def check_same_fit(fingerprint: Callable[[], Mapping[str, Any]], context: FitContext) -> None:
    """Check before the first step that all ranks run the same fit.

    Parameters
    ----------
    fingerprint : callable
        Returns the fingerprint of the data. It is called only where there are several ranks.
    context : FitContext
        Context of the fit.

    Raises
    ------
    RankError
        If data, parameters, an integer ``random_state`` or versions differ.
    """
    if context.ranks.count == 1:
        return
    description = describe_fit(fingerprint(), context.parameters)
    if isinstance(context.parameters["random_state"], Integral):
        description["parameters"]["random_state"] = context.seed

    def unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        return differences(first, other) + changes(first["versions"], other["versions"])

    context.ranks.agree(description, unlike)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # used from where it lies
        return None


@dataclass(frozen=True)
class PreviousRun:
    """The run that a fit resumes, or from which a warm start goes on.

    Attributes
    ----------
    state : dict
        State of the run, see :meth:`sklearn_excb.fitting.training_run.Run.state_dict`, and under
        "about" its description.
    differing : list of str
        Differences between that fit and this one, in words. Empty where the run is resumed as it
        was.
    """

    state: Mapping[str, Any]
    differing: list[str]

    def seed(self, random_state: Any, drawn: int) -> int:
        """Seed to go on with: the run's own, unless another one is asked for in a warm start."""
        return drawn if self.differing and isinstance(random_state, Integral) else self._run["seed"]

    def parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters with "auto" as the run has resolved it: all of them, or those of its networks.

        An auto rule may have changed since, or the machine that ``micro_batch`` goes by.
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
        """Step to go on with, and whether within the state's epoch: if epochs are as long as then.

        Raises
        ------
        ValueError
            If the networks are others, or fewer epochs are asked for than are done.

        Warns
        -----
        CheckpointWarning
            If a warm start has nothing to train.
        """
        before, now = self._run["network"]["settings"], settings.as_dict()
        others = changes({n: before[n] for n in _STRUCTURE}, {n: now[n] for n in _STRUCTURE})
        if others:
            raise ValueError(
                f"A warm start goes on with the networks of before, but {', '.join(others)}. Set "
                "them as they were, or begin anew with warm_start=False and another checkpoint_dir."
            )
        if settings.freeze_backbone and not self._run["network"]["head"].get("standardized"):
            raise ValueError(
                "The run was begun by an earlier version, whose projector for frozen backbones had "
                "hidden layers. Go on with that version, or begin anew with warm_start=False and "
                "another checkpoint_dir."
            )
        per_epoch = settings.steps_per_epoch(n_samples)
        step, was = self.state["step"], self._run["steps_per_epoch"]
        first = step if per_epoch == was else step // was * per_epoch
        if first > settings.epochs * per_epoch:
            raise ValueError(
                f"epochs={settings.epochs}, but {-(-step // was)} are begun: epochs counts those "
                "before a warm start too. Raise it."
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
        Returns the fingerprint of the data. It is called only where there is a folder, or for a
        warm start.
    context : FitContext
        Context of the fit.

    Returns
    -------
    previous : PreviousRun or None
        None where the fit begins anew.
    description : dict
        Description of the fit, which goes into its checkpoints; empty where there are none.

    Raises
    ------
    ValueError
        If data or parameters of the previous run are others, and this is no warm start; the message
        names them. If ``resume`` requires a checkpoint and there is none, or forbids one and there
        is one. If a warm start follows a fit that kept no state.
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
        raise ValueError("resume=True needs a checkpoint_dir to go on from.")
    state = None if folder is None else folder.newest()
    if folder is not None and state is None and resume is True:
        raise ValueError(f"resume=True, but {folder.path} holds no state of a run.")
    if folder is not None and state is not None and resume is False:
        raise ValueError(
            f'resume=False, but {folder.path} holds a run. Go on with it (resume="auto"), choose '
            "another checkpoint_dir, or remove it."
        )
    if state is None and warm and kept is None and context.fitted_before:
        raise ValueError(
            "warm_start=True, but the fit before kept no state of its training: it was made with "
            "warm_start=False, or by partial_fit, or it diverged, or was loaded. Set "
            "warm_start=True before the first fit, or go on from the checkpoint_dir it had."
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
        where = folder.path if folder is not None else "The state"
        raise ValueError(
            f"{where} holds a run that this fit does not go on with: {'; '.join(differing)}. Set "
            "them as they were, choose another checkpoint_dir, or set warm_start=True to go on "
            "from there with what is new. Each fit of a search needs a folder of its own."
        )
    if None not in (before["frozen"], now["frozen"]) and before["frozen"] != now["frozen"]:
        raise ValueError(
            "A warm start goes on with the frozen backbone of before, but the weights are others: "
            "what was learned is of their features. Set them as they were, or begin anew with "
            "warm_start=False and another checkpoint_dir."
        )
    others = changes(before["versions"], now["versions"])
    if others and not differing:
        warn_caller(
            f"The run goes on with other packages or threads than it had ({'; '.join(others)}): "
            "its result may differ from an uninterrupted one in the last bits.",
            CheckpointWarning,
        )
    return PreviousRun(state, differing)


def warn_nothing_to_train(epochs: int) -> None:
    """Warn of a warm start with nothing to train."""
    warn_caller(
        f"A warm start with nothing to train: epochs={epochs} are done. epochs counts those before "
        "it too: raise it.",
        CheckpointWarning,
    )


def _both_auto(*values: Any) -> bool:
    return all(isinstance(value, str) and value == "auto" for value in values)
