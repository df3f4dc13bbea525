"""A training without an end: steps on what has just come, one part of a stream after another."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_excb.data.fingerprints import changes, parameter_fingerprint
from sklearn_excb.data.sources import Source
from sklearn_excb.exceptions import DivergedError
from sklearn_excb.fitting.fit import Fitted
from sklearn_excb.fitting.run import Run
from sklearn_excb.networks.heads import predictor, uses_batch_norm
from sklearn_excb.networks.student_teacher import ClusterNetwork, StudentTeacher
from sklearn_excb.runtime.generator_state import seeded_generators
from sklearn_excb.runtime.philox import permutation
from sklearn_excb.runtime.threads import reader_threads
from sklearn_excb.settings import auto_rules as rules
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.storage.packing import Snapshot, pack, unpack
from sklearn_excb.training.build import facts_of, prepare
from sklearn_excb.training.gradients import Divergence, Gradients
from sklearn_excb.training.history import EpochRecord, entry
from sklearn_excb.training.loop import start_centroids, train
from sklearn_excb.training.optimizer import Plan
from sklearn_excb.training.settling import enough_to_settle, settle_teacher
from sklearn_excb.views.batches import Batch, ViewBatches, inference_inputs
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reservoir import Reservoir, samples_of, source_of
from sklearn_excb.views.row_views import RowRecipe

_NO_END = sys.maxsize  # epochs: crops stay those of the first
_OF_FITS = {"epochs": "auto", "steps_per_epoch": "auto"}


@dataclass
class OnlineFit:
    """A training that has no end, between two parts of its stream.

    A nominal epoch is as many images as a fit of K clusters would have: warm-ups and the entries of
    the history go by it.

    Attributes
    ----------
    settings : Settings
        Of the whole training.
    recipe : ViewRecipe or RowRecipe
    n_samples : int
        Of a nominal epoch.
    n_features : int
        What the backbone gives.
    image_shape : tuple of int
        Of the first part.
    seed : int
        Of every draw.
    parameters : mapping
        Of the estimator, as :func:`sklearn_excb.data.fingerprints.parameter_fingerprint` has them.
    networks : StudentTeacher
    history : list of dict
        To begin with.
    device : torch.device
        Where the networks are.
    reservoir : Reservoir
        What came before.
    plan : Plan
        Of the rates.
    n_parts : int
        That were learned from.
    kept : tuple or None
        State to go on from.
    """

    settings: Settings
    recipe: ViewRecipe | RowRecipe
    n_samples: int
    n_features: int
    image_shape: tuple[int, int]
    seed: int
    parameters: Mapping[str, Any]
    networks: StudentTeacher
    history: list[dict[str, Any]]
    device: torch.device
    reservoir: Reservoir
    plan: Plan
    n_parts: int = 0
    kept: Snapshot | None = None
    _run: Run | None = None

    @classmethod
    def begin(
        cls, source: Source, parameters: Mapping[str, Any], *, seed: int, device: torch.device
    ) -> Self:
        """Begin with the first part of a stream, on which the centroids start.

        Raises
        ------
        ValueError
            If parameters and data do not fit together, or there are fewer samples than clusters.
        """
        facts = facts_of(source)
        K = parameters["K"]
        K = rules.n_clusters(facts.n_samples) if isinstance(K, str) else int(K)
        if len(source) < K:
            raise ValueError(
                f"The first call of partial_fit has {len(source):,} samples, fewer than K={K:,}: "
                "the centroids start from them. Gather as many before the first call, or lower K."
            )
        with seeded_generators(seed):
            facts = replace(facts, n_samples=max(len(source), rules.n_samples(K)))
            chosen = {**parameters, **_OF_FITS, "K": K}
            if isinstance(chosen["batch_size"], str):
                chosen["batch_size"] = min(rules.batch_size(facts.n_samples), len(source))
            networks, settings, n_features, batches = prepare(source, facts, chosen, seed, device)
            networks.to(device)
            start_centroids(networks, batches.start(), settings, seed=seed)
        return cls(
            settings,
            batches.recipe,
            facts.n_samples,
            n_features,
            facts.shape,
            seed,
            parameter_fingerprint(parameters),
            networks,
            [entry(0, n_clusters=K)],
            device,
            Reservoir(facts.n_samples, seed),
            Plan.of(settings, facts.n_samples)._replace(endless=True),
        )

    @classmethod
    def after(cls, fitted: Fitted, parameters: Mapping[str, Any], *, device: torch.device) -> Self:
        """Go on from a fit: from the state it kept, or else from its teacher alone.

        Raises
        ------
        ValueError
            If parameters are not those of the fit.
        """
        settings, teacher = fitted.settings, fitted.teacher
        _check_as_fitted(settings, parameters)
        n_samples = max(len(fitted.labels), rules.n_samples(settings.K))
        with seeded_generators(fitted.seed or 0):
            batch_norm = not settings.has_backbone or uses_batch_norm(teacher.backbone)
            new = predictor(settings.head_width, batch_norm=batch_norm)
        student = ClusterNetwork(
            copy.deepcopy(teacher.backbone),
            copy.deepcopy(teacher.projector),
            copy.deepcopy(teacher.centroids),
            new,
        ).requires_grad_(True)
        settings = replace(settings, epochs=max(1, settings.epochs))
        return cls(
            settings,
            fitted.recipe,
            n_samples,
            fitted.n_backbone_features,
            fitted.image_shape,
            fitted.seed or 0,
            parameter_fingerprint(parameters),
            StudentTeacher(student).to(device),
            fitted.history,
            device,
            Reservoir(n_samples, fitted.seed or 0),
            Plan.of(settings, n_samples)._replace(endless=True),
            kept=fitted.state,
        )

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Refuse other parameters than those of the first part."""
        if differing := changes(self.parameters, parameter_fingerprint(parameters)):
            raise ValueError(
                "partial_fit goes on with the parameters it began with, but "
                f"{'; '.join(differing)}. Set them as they were, or begin anew with a clone."
            )

    def learn(self, source: Source, *, n_jobs: int, device: torch.device) -> None:
        """Take steps on a part of the stream, each image once; all of them or, if one fails, none.

        Parameters
        ----------
        source : Source
            The part.
        n_jobs : int
            Threads that open images.
        device : torch.device
            Where to go on, if this comes from elsewhere.

        Raises
        ------
        DivergedError
            If loss or gradients are not finite.
        """
        if self._run is None:
            self.device = device
        with seeded_generators(self.seed):
            run = self._taken_up()
            before, kept_before = pack(run.state_dict()), self.reservoir.state()
            try:
                self._steps(run, self._batches(source, n_jobs, run.step))
            except BaseException:
                state = unpack(*before)
                run.load_state_dict(state, state["step"], within=True)
                self.reservoir.restore(kept_before)
                raise
        self.n_parts += 1

    def entries(self) -> list[dict[str, Any]]:
        """Entries of the nominal epochs that are done, and of the one under way."""
        return self.history if self._run is None else self._run.entries()

    def fitted(self) -> Fitted:
        """What there is to predict with; its backbone and projector go on learning."""
        return Fitted(
            self._settled(),
            self.settings,
            self.recipe,
            self.n_features,
            self.image_shape,
            labels=np.empty(0, np.int64),
            history=self.entries(),
            seed=self.seed,
        )

    def inputs(self) -> Iterator[Tensor]:
        """Yield the samples that were kept, as inference sees them."""
        kept = self.reservoir.draw(0, len(self.reservoir))
        return inference_inputs(
            source_of(kept, self.settings.n_channels),
            self.recipe,
            batch_size=self.settings.inference_batch,
            n_jobs=1,
            device=self.device,
        )

    def _settled(self) -> ClusterNetwork:
        """Teacher whose centroids have settled on the kept samples, if they are enough."""
        learning, n = self.networks.to(self.device).teacher, len(self.reservoir)
        centroids = copy.deepcopy(learning.centroids)
        teacher = ClusterNetwork(learning.backbone, learning.projector, centroids).eval()
        if enough_to_settle(self.settings, n):
            settle_teacher(teacher, self.inputs(), self.settings, n_samples=n, seed=self.seed)
        return teacher

    def _batches(self, source: Source, n_jobs: int, first: int) -> Iterator[Batch]:
        """Batches of a part in random order, up to half of each drawn from what came before."""
        size = self.settings.batch_size
        n_old = min(len(self.reservoir), size // 2)
        n_steps = -(-len(source) // (size - n_old))
        rows = permutation(self.seed, self.n_parts + 1, len(source))
        with reader_threads(n_jobs) as read:
            for step, some in enumerate(np.array_split(rows, n_steps), first + 1):
                old = self.reservoir.draw(step, n_old)
                new = samples_of(source, some, self.recipe, read)
                self.reservoir.offer(new)
                together, n = source_of([*new, *old], source.n_channels), len(new) + len(old)
                views = ViewBatches(
                    together, self.recipe, n, _NO_END, self.seed, n_jobs, self.device
                )
                yield from views.of_rows(step, np.arange(n))

    def _taken_up(self) -> Run:
        self.networks.to(self.device)  # inference may have been elsewhere
        if self._run is None:
            per_epoch = self.plan.steps_per_epoch
            self._run = Run.of(self.networks, self.settings, self.device, per_epoch)
            if self.kept is not None:
                state = unpack(*self.kept)
                self._run.load_state_dict(state, state["step"], within=True)
                self.kept = None
            self._run.history = list(self.history)
        return self._run

    def _steps(self, run: Run, batches: Iterator[Batch]) -> None:
        plan, gradients = self.plan, Gradients(self.networks.student, run.scaler)
        for report in train(
            run.networks,
            run.balancing,
            run.optimizer,
            batches,
            self.settings,
            plan,
            seed=self.seed,
            first_step=run.step,
            scaler=run.scaler,
        ):
            run.record.add(report)
            run.step = report.step + 1
            if divergence := gradients.look(report):
                raise self._diverged(divergence)
            if run.step % plan.steps_per_epoch == 0:
                last = run.record.summary(run.history[-1]["epoch"] + 1)
                run.history.append(last)
                run.record = EpochRecord(self.settings.K, self.device)
                run.watch.look(last)
        if divergence := gradients.ask():
            raise self._diverged(divergence)

    def _diverged(self, divergence: Divergence) -> DivergedError:
        return DivergedError(
            f"The training diverged in step {divergence.step + 1}, with a loss of "
            f"{divergence.loss}; this call of partial_fit is undone. Begin anew with a lower "
            f"learning_rate, now {self.settings.learning_rate:g}. {divergence}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: with CPU tensors only."""
        state = vars(self) | {"networks": copy.deepcopy(self.networks).cpu(), "_run": None}
        if self._run is not None:
            state |= {"kept": pack(self._run.state_dict()), "history": self._run.history}
        return state


def _check_as_fitted(settings: Settings, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that are named now and were others in the fit."""
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
            f"partial_fit goes on with what was fitted, but {'; '.join(differing)}. Set them as "
            "they were, or begin anew with a clone."
        )


def _one_or_two(value: Any) -> Any:
    """A parameter that may be a first and a last value; one for both where they are the same."""
    if not isinstance(value, (tuple, list)):
        return value
    first, last = value
    return first if first == last else [first, last]
