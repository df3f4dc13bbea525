"""fit and partial_fit: from what the user passes to the learned attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator

from sklearn_excb.data.open_source import is_stream
from sklearn_excb.data.sources import ItemImages, Rows, Skipped, Source
from sklearn_excb.data.unusable_images import (
    drop_unusable,
    expand_labels,
    skipped_of,
    warn_skipped,
)
from sklearn_excb.fitting.context import fit_context
from sklearn_excb.fitting.fit import fit
from sklearn_excb.fitting.partial_fit import OnlineFit
from sklearn_excb.fitting.several_devices import fit_on
from sklearn_excb.fitting.stream import Stream, stream_batch_size
from sklearn_excb.fitting.training_data import Collection
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.inference.learned import INPUT_FACTS, LearnedAttributes
from sklearn_excb.inference.samples import open_samples
from sklearn_excb.runtime.generator_state import seed_from
from sklearn_excb.runtime.launch import number_of_devices
from sklearn_excb.runtime.rendezvous import join
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS, check_parameters
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.reading import number_of_jobs


class FittingMixin(LearnedAttributes):
    """Fits of an estimator: to a collection, to a stream, and to one part after another."""

    steps_per_epoch: int | str
    freeze_backbone: bool
    n_jobs: int | str | None
    device: str | torch.device
    devices: int | str
    random_state: Any
    checkpoint_dir: Any
    warm_start: bool
    image_shape_: tuple[int, int]
    n_channels_: int
    skipped_: list[Skipped]

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn clusters and embeddings.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Images: an array or tensor (n, h, w) gray or (n, h, w, c), of uint8, uint16 or floats
            in [0, 1]; a list of arrays or PIL images of any size; a folder (searched through, in
            natural order, the files of a folder before the folders in it, no class folders needed:
            ``sample_names_`` names the files); a tar archive, such as WebDataset's; a list of files
            or of archives; or a data set with ``__len__`` and ``__getitem__`` whose items are an
            image, a tuple that begins with one, or a dict with an entry "image" (torchvision,
            Hugging Face). An item may also be the bytes of a file, or an open file. What can only
            be iterated (an ``IterableDataset``, a generator) is read once, and its images are kept
            in memory as they come, unless ``steps_per_epoch`` is a number. Or feature vectors:
            2-D rows (n, d), of features in one unit; put a StandardScaler before where they have
            several, as for k-means.
        y : ignored
            For the conventions of scikit-learn.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used; ``ImageError``, one of its kind, names the
            image.
        FloatingPointError
            If the training diverges in its first epoch; ``DivergedError``, one of its kind, has the
            rows of the batch in which it showed. Whatever is raised, what was learned before is
            kept.
        RankError
            If another process of the fit has failed or is not at the same fit; a RuntimeError.
        OSError
            If ``checkpoint_dir`` cannot be written to at the start; ``BlockingIOError``, one of its
            kind, if another fit is at work there.
        KeyboardInterrupt
            If Ctrl-C was pressed while it trained: after the step that was under way the training
            ends, and the images are assigned, so that the estimator is fitted when this is raised.
            A second Ctrl-C leaves at once, with what was learned before.

        Warns
        -----
        CollapseWarning
            If the clusters collapse, with the parameter to change, or what in X explains it.
        DivergenceWarning
            If the training diverges after its first epoch, with the epoch at which it then stopped.
            Both are scikit-learn's ConvergenceWarning.
        DurationWarning
            If a CPU will need more than an hour, and what would take less.
        MemoryWarning
            If the device has less memory left than the fit will take (:meth:`estimate_memory`).
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures of kinds that are not read, such as HEIC.
        CheckpointWarning
            If a state could not be written, in which case the fit goes on; or not be read, in which
            case it goes on from the one before.
        """
        context = fit_context(self)
        if self.steps_per_epoch != "auto":
            return self._fit_stream(X, context)
        ranks = context.ranks
        n_devices = number_of_devices(self.devices, context.device) if ranks.count == 1 else 1
        with unchanged_on_error(self):
            with ranks.together():
                source = open_samples(self, X, fitting=True)
                n_jobs = number_of_jobs(self.n_jobs, source)
                usable = drop_unusable(source, n_jobs, progress=context.shows_progress)
            skipped_before = skipped_of(source)
            warn_skipped(skipped_before, len(source))
            if n_devices > 1:
                fitted = fit_on(n_devices, usable, context)
            else:
                fitted = fit(Collection(usable), context)
            self._set_input_facts(source, fitted.image_shape)
            fitted = replace(fitted, labels=expand_labels(fitted.labels, usable, source))
            resolved = {
                "n_jobs": n_jobs,
                "device": str(context.device),
                "devices": max(ranks.count, n_devices),
                "steps_per_epoch": fitted.settings.steps_per_epoch(len(usable)),
                "random_state": fitted.seed,
            }
            self._set_fitted(fitted, resolved_parameters(context, fitted.settings, resolved))
        if len(self.skipped_) > len(skipped_before):  # more of them while the fit read them
            warn_skipped(self.skipped_, len(source))
        self._interrupt_if_stopped()
        return self

    def _fit_stream(self, X: Any, context: FitContext) -> Self:
        """Fit a stream, of which only a sample is kept."""
        ranks = context.ranks
        if not is_stream(X):
            raise ValueError(
                "steps_per_epoch is for what can only be iterated, and X has a length: an epoch is "
                'all of it. Leave steps_per_epoch="auto".'
            )
        if ranks.count == 1 and self.devices not in ("auto", 1):
            raise ValueError(
                "With steps_per_epoch a fit starts no processes: each device needs a stream of its "
                "own. Start them with torchrun, or set devices=1."
            )
        self._check_trained_backbone("steps_per_epoch")
        n_jobs = effective_n_jobs(1 if isinstance(self.n_jobs, str) else self.n_jobs)
        size = stream_batch_size(context.parameters)
        parameters = {**context.parameters, "batch_size": size, "n_jobs": n_jobs}
        stream = Stream(X, parameters)
        with unchanged_on_error(self):
            for name in INPUT_FACTS:
                self.__dict__.pop(name, None)
            fitted = fit(stream, replace(context, parameters=parameters))
            self.image_shape_, self.n_channels_ = fitted.image_shape, fitted.settings.n_channels
            self.skipped_ = stream.skipped
            resolved = {
                "n_jobs": n_jobs,
                "device": str(context.device),
                "devices": ranks.count,
                "random_state": fitted.seed,
            }
            self._set_fitted(fitted, resolved_parameters(context, fitted.settings, resolved))
        warn_skipped(stream.skipped, stream.n_read, "were left out")
        self._interrupt_if_stopped()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from what has just come, and go on with what was learned before.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`. Each call takes every sample once, in steps of at most
            ``batch_size``. The first one needs at least K: the centroids start from them.
        y : ignored
            For the conventions of scikit-learn.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in :meth:`fit`; also if parameters have changed since the first call, if the first
            call has fewer than K samples, and with ``checkpoint_dir`` or several ``devices``.
        FloatingPointError
            ``DivergedError``, if loss or gradients are not finite. Whatever is raised, the call is
            undone: it was learned from as a whole or not at all.

        Notes
        -----
        The method is online: cluster sizes and the teacher are running means. Without a known end
        the learning rate stays as it is after the warm-up, and so do weight decay and the momentum
        of the teacher. "auto" is what it would be for a collection of 19.5 K samples, the paper's
        number; as many are an epoch of ``history_``. ``K="auto"`` goes by the samples of the first
        call. ``epochs`` are of :meth:`fit`.

        A stream may change: half of each step are samples that came before, drawn at random from
        up to 19.5 K that are kept, at most 256 MB of them, each of all that came as likely as any
        other. They are in pickles too. On them the centroids settle (``settle_passes``) when after
        a call something is first asked of the estimator, which takes a pass over them.

        There are no ``labels_`` of training samples: use :meth:`predict`. After :meth:`fit`,
        :meth:`load` or unpickling it goes on from there; the optimiser begins anew unless
        the fit had ``warm_start=True``, or it was a pickle. A call of :meth:`fit` begins anew.
        """
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        context = FitContext(parameters, 0, self._device_of_partial_fit())
        online: OnlineFit | None = self.__dict__.get("_online")
        fitted: Fitted | None = self.__dict__.get("_fitted")
        with unchanged_on_error(self):
            source = open_samples(self, X, fitting=fitted is None and online is None)
            n_jobs = number_of_jobs(self.n_jobs, source)
            usable = drop_unusable(source, n_jobs)
            if online is not None:
                online.check(parameters)
            elif fitted is not None:
                online = OnlineFit.after(fitted, context)
            else:
                context = replace(context, seed=seed_from(self.random_state))
                online = OnlineFit.begin(usable, context)
                self._set_input_facts(source, online.model.facts.shape)
            online.learn(usable, n_jobs=n_jobs, device=context.device)
            for name in ("sample_names_", "ignored_files_"):
                self.__dict__.pop(name, None)
            self.skipped_ = skipped_of(source)
            resolved = {
                "n_jobs": n_jobs,
                "device": str(online.device),
                "devices": 1,
                "steps_per_epoch": online.plan.steps_per_epoch,
                "random_state": online.seed,
            }
            resolved = resolved_parameters(context, online.model.settings, resolved)
            self._set_learning(online, resolved, online.entries())
        warn_skipped(self.skipped_, len(source))
        return self

    def _set_input_facts(self, source: Source, image_shape: tuple[int, int]) -> None:
        """Set the attributes that describe the training samples."""
        if not isinstance(source, Rows):
            self.image_shape_, self.n_channels_ = image_shape, source.n_channels
        if source.names is not None:
            self.sample_names_ = np.array(source.names)
        if isinstance(source, ItemImages) and source.ignored is not None:
            self.ignored_files_ = np.array(source.ignored, dtype=str)
        self.skipped_ = skipped_of(source)

    def _interrupt_if_stopped(self) -> None:
        """Raise KeyboardInterrupt after a Ctrl-C, now that the estimator is fitted."""
        if self._fitted.stopped:
            raise KeyboardInterrupt(
                f"The training was stopped in epoch {self.history_[-1]['epoch']} of "
                f"{self._fitted.settings.epochs}. The estimator is fitted as it was then."
            )

    def _device_of_partial_fit(self) -> torch.device:
        """Return the device of partial_fit; refuse what partial_fit cannot do."""
        if self.checkpoint_dir is not None:
            raise ValueError(
                "partial_fit writes no checkpoints to checkpoint_dir: a stream cannot be read "
                "again. Use save, or pickle the estimator, between two calls."
            )
        self._check_trained_backbone("partial_fit", self.__dict__.get("_fitted"))
        ranks, device = join(self.device, self.devices)
        if ranks.count > 1 or (
            self.devices != "auto" and number_of_devices(self.devices, device) > 1
        ):
            raise ValueError("partial_fit runs in one process: set devices=1.")
        if "published" in self.__dict__.get("resolved_params_", {}):
            raise ValueError(
                "partial_fit cannot continue the training of a published network, which comes "
                "without student and optimizer. Begin with fit or a new estimator."
            )
        return device

    def _check_trained_backbone(self, wanted: str, before: Fitted | None = None) -> None:
        """Refuse a frozen backbone, now or in the fit that goes on, where features are not kept."""
        if self.freeze_backbone or (before is not None and before.settings.freeze_backbone):
            raise ValueError(
                f"{wanted} and freeze_backbone=True do not go together: features of a stream are "
                "not kept. Compute them with the backbone, and pass them as 2-D rows."
            )


def resolved_parameters(
    context: FitContext, settings: Settings, of_run: dict[str, Any]
) -> dict[str, Any]:
    """Return every parameter with "auto" replaced, but for those of checkpoints."""
    named = context.parameters.items()
    chosen = {name: value for name, value in named if name not in CHECKPOINT_PARAMETERS}
    return chosen | of_run | settings.as_dict()


@contextmanager
def unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Put every attribute back if the body fails, so that a failed fit loses nothing."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise
