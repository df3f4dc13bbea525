"""Online training: steps on one part of a stream after another, without a known end."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_excb.data.fingerprints import changes, parameter_fingerprint
from sklearn_excb.data.sources import Source
from sklearn_excb.exceptions import DivergedError
from sklearn_excb.fitting.run import Run
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.networks.heads import predictor, uses_batch_norm
from sklearn_excb.networks.student_teacher import ClusterNetwork, StudentTeacher
from sklearn_excb.runtime.philox import permutation
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.runtime.threads import reader_threads
from sklearn_excb.settings import auto_rules
from sklearn_excb.settings.resolve import Facts, Settings
from sklearn_excb.storage.packing import Snapshot, pack, unpack
from sklearn_excb.training.build import Model, prepare
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.final_labels import MOST_LOOKED_AT
from sklearn_excb.training.gradients import Divergence
from sklearn_excb.training.history import entry
from sklearn_excb.training.loop import start_centroids
from sklearn_excb.training.optimizer import Plan
from sklearn_excb.training.settling import enough_to_settle, settle_teacher
from sklearn_excb.training.teacher_outputs import assign
from sklearn_excb.views.batches import Batch, ViewBatches
from sklearn_excb.views.reservoir import Reservoir, samples_of, source_of
from sklearn_excb.views.whole_images import inference_inputs

_NO_END = sys.maxsize  # epochs; crops keep the sizes of the first epoch
_OF_FITS = {"epochs": "auto", "steps_per_epoch": "auto"}


@dataclass
class OnlineFit:
    """Online training without a known end, between two parts of its stream.

    A nominal epoch has as many images as a fit of K clusters would have. It determines the warm-ups
    and the entries of the history.

    Attributes
    ----------
    model : Model
        Networks and settings.
    n_samples : int
        Number of samples in a nominal epoch.
    seed : int
        Seed of all random draws.
    parameters : mapping
        Fingerprint of the estimator's parameters
        (:func:`sklearn_excb.data.fingerprints.parameter_fingerprint`).
    history : list of dict
        Entries of the history before the first call.
    device : torch.device
        Device of the networks.
    kept : tuple or None, default=None
        Packed training state from which the training continues.
    reservoir : Reservoir
        Sample of all parts so far.
    n_parts : int
        Number of parts so far.
    """

    model: Model
    n_samples: int
    seed: int
    parameters: Mapping[str, Any]
    history: list[dict[str, Any]]
    device: torch.device
    kept: Snapshot | None = None
    reservoir: Reservoir = field(init=False)
    n_parts: int = 0
    _run: Run | None = None

    def __post_init__(self) -> None:
        self.reservoir = Reservoir(self.n_samples, self.seed)

    @property
    def plan(self) -> Plan:
        """Plan of the training, with rates that stay as they are after the warm-up."""
        return Plan.of(self.model.settings, self.n_samples)._replace(endless=True)

    @classmethod
    def begin(cls, source: Source, context: FitContext) -> Self:
        """Begin with the first part of a stream, on which the centroids start.

        Raises
        ------
        ValueError
            If parameters and data do not fit together, or the part has fewer samples than clusters.
        """
        parameters, K = context.parameters, context.parameters["K"]
        K = auto_rules.n_clusters(len(source)) if isinstance(K, str) else int(K)
        if len(source) < K:
            raise ValueError(
                f"The first call of partial_fit has {len(source):,} samples, fewer than K={K:,}, "
                "but the centroids start from these samples. Pass at least K samples, or lower K."
            )
        n_samples = max(len(source), auto_rules.n_samples(K))
        chosen = {**parameters, **_OF_FITS, "K": K}
        if isinstance(chosen["batch_size"], str):
            chosen["batch_size"] = min(auto_rules.batch_size(n_samples), len(source))
        seed, draws = context.seed, PrivateGenerator(context.seed)
        model, batches = prepare(
            source, replace(context, parameters=chosen), n_samples, draws, is_whole=False
        )
        networks = model.networks.to(context.device)
        start_centroids(networks, batches.start(), model.settings, seed=seed, draws=draws)
        return cls(
            model,
            n_samples,
            context.seed,
            parameter_fingerprint(parameters),
            [entry(0, n_clusters=K)],
            context.device,
        )

    @classmethod
    def after(cls, fitted: Fitted, context: FitContext) -> Self:
        """Continue from a fit: from its training state, or without one from its teacher alone.

        Raises
        ------
        ValueError
            If parameters differ from those of the fit.
        """
        settings, teacher, seed = fitted.settings, fitted.teacher, fitted.seed or 0
        _check_as_fitted(settings, context.parameters)
        n_samples = max(len(fitted.labels), auto_rules.n_samples(settings.K))
        with PrivateGenerator(seed):
            batch_norm = not settings.has_backbone or uses_batch_norm(teacher.backbone)
            new = predictor(settings.head_width, batch_norm=batch_norm)
        student = ClusterNetwork(
            copy.deepcopy(teacher.backbone),
            copy.deepcopy(teacher.projector),
            copy.deepcopy(teacher.centroids),
            new,
        ).requires_grad_(True)
        kind = "images" if any(fitted.image_shape) else "rows"
        model = Model(
            StudentTeacher(student).to(context.device),
            replace(settings, epochs=max(1, settings.epochs)),
            fitted.recipe,
            fitted.n_backbone_features,
            Facts(n_samples, kind, fitted.image_shape, settings.n_channels),
        )
        return cls(
            model,
            n_samples,
            seed,
            parameter_fingerprint(context.parameters),
            fitted.history,
            context.device,
            fitted.state,
        )

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise if parameters differ from those of the first part."""
        if differing := changes(self.parameters, parameter_fingerprint(parameters)):
            raise ValueError(
                "partial_fit needs the parameters of its first call, but "
                f"{'; '.join(differing)}. Undo the changes, or start anew with a clone."
            )

    def learn(self, source: Source, *, n_jobs: int, device: torch.device) -> None:
        """Take steps on a part of the stream, each image once. An error undoes all steps.

        Parameters
        ----------
        source : Source
            Part of the stream.
        n_jobs : int
            Number of threads that open images.
        device : torch.device
            Device to continue on, if the training comes from a fit or a pickle.

        Raises
        ------
        DivergedError
            If the loss or the gradients are not finite.
        """
        if self._run is None:
            self.device = device
        run = self._current_run()
        before, kept_before = pack(run.state_dict()), self.reservoir.state()
        try:
            self._train(run, self._batches(source, n_jobs, run.step))
        except BaseException:
            state = unpack(*before)
            run.load_state_dict(state, state["step"], within=True)
            self.reservoir.restore(kept_before)
            raise
        self.n_parts += 1

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of all nominal epochs, the current one included."""
        return self.history if self._run is None else self._run.entries()

    def fitted(self) -> Fitted:
        """Return the result so far. It shares its backbone and projector with the training."""
        return Fitted(
            self._settled(),
            self.model.settings,
            self.model.recipe,
            self.model.n_features,
            self.model.facts.shape,
            labels=np.empty(0, np.int64),
            history=self.entries(),
            seed=self.seed,
        )

    def inputs(self, most: int = _NO_END) -> Iterator[Tensor]:
        """Return batches of at most ``most`` kept samples, prepared for inference."""
        kept = self.reservoir.draw(0, min(most, len(self.reservoir)))
        return inference_inputs(
            source_of(kept, self.model.settings.n_channels),
            self.model.recipe,
            batch_size=self.model.settings.inference_batch,
            n_jobs=1,
            device=self.device,
        )

    def _settled(self) -> ClusterNetwork:
        """Return a teacher whose centroids have settled on the kept samples, if those suffice."""
        learning, n = self.model.networks.to(self.device).teacher, len(self.reservoir)
        centroids = copy.deepcopy(learning.centroids)
        teacher = ClusterNetwork(learning.backbone, learning.projector, centroids).eval()
        if enough_to_settle(self.model.settings, n):
            settle_teacher(teacher, self.inputs(), self.model.settings, n_samples=n, seed=self.seed)
        if self._run is not None and n:
            labels = np.empty(min(MOST_LOOKED_AT, n), np.int64)
            assign(teacher, self.inputs(MOST_LOOKED_AT), out=labels)
            self._run.monitor.check_labels(labels, self._run.step)
        return teacher

    def _batches(self, source: Source, n_jobs: int, first: int) -> Iterator[Batch]:
        """Yield batches of a part in random order, with up to half of each from earlier samples."""
        size = self.model.settings.batch_size
        n_old = min(len(self.reservoir), size // 2)
        n_steps = -(-len(source) // (size - n_old))
        rows = permutation(self.seed, self.n_parts + 1, len(source))
        with reader_threads(n_jobs) as read:
            for step, some in enumerate(np.array_split(rows, n_steps), first + 1):
                old = self.reservoir.draw(step, n_old)
                new = samples_of(source, some, self.model.recipe, read)
                self.reservoir.offer(new)
                together, n = source_of([*new, *old], source.n_channels), len(new) + len(old)
                views = ViewBatches(
                    together, self.model.recipe, n, _NO_END, self.seed, n_jobs, self.device
                )
                yield from views.of_rows(step, np.arange(n))

    def _current_run(self) -> Run:
        """Return the run on its device. After a fit or unpickling, build it first."""
        networks = self.model.networks.to(self.device)  # inference may have moved them
        if self._run is None:
            self._run = Run.of(networks, self.model.settings, self.device, self.n_samples)
            self._run.monitor.inputs = partial(self.inputs, MOST_LOOKED_AT)
            if self.kept is not None:
                state = unpack(*self.kept)
                self._run.load_state_dict(state, state["step"], within=True)
                self.kept = None
            self._run.history = list(self.history)
        return self._run

    def _train(self, run: Run, batches: Iterator[Batch]) -> None:
        plan = self.plan
        for divergence in run.steps(batches, plan, seed=self.seed):
            if divergence is not None:
                raise self._diverged(divergence)
            if run.step % plan.steps_per_epoch == 0:
                run.end_epoch(run.summary())

    def _diverged(self, divergence: Divergence) -> DivergedError:
        return DivergedError(
            f"The training diverged in step {divergence.step + 1}, with a loss of "
            f"{divergence.loss}, and this call of partial_fit is undone. Start anew with a lower "
            f"learning_rate (now {self.model.settings.learning_rate:g}). {divergence}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a pickle, with all tensors on the CPU."""
        networks = copy.deepcopy(self.model.networks).cpu()
        state = vars(self) | {"model": replace(self.model, networks=networks), "_run": None}
        state["device"] = torch.device("cpu")
        if self._run is not None:
            state |= {"kept": pack(self._run.state_dict()), "history": self._run.history}
        return state


def _check_as_fitted(settings: Settings, parameters: Mapping[str, Any]) -> None:
    """Raise if parameters that are set now differ from those of the fit."""
    before: dict[str, Any] = {}
    now: dict[str, Any] = {}
    for name, was in settings.as_dict().items():
        asked = parameters.get(name, "auto")
        if name in _OF_FITS or asked is None or isinstance(asked, nn.Module) or asked == "auto":
            continue
        if name in ("batch_size", "micro_batch"):
            asked = min(int(asked), was)  # the samples may have been fewer
        before[name] = _one_or_two(was)
        now[name] = _one_or_two(asked)
    if differing := changes(before, now):
        raise ValueError(
            f"partial_fit needs the parameters of the fit, but {'; '.join(differing)}. Undo "
            "the changes, or start anew with a clone."
        )


def _one_or_two(value: Any) -> Any:
    """Return one value for a pair of equal values, and a list for a pair of different ones."""
    if not isinstance(value, (tuple, list)):
        return value
    first, last = value
    return first if first == last else [first, last]
