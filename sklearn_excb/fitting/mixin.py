"""fit and partial_fit: from the user's samples to the learned attributes."""

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
from sklearn_excb.data.sources import ItemImages, Rows, Source
from sklearn_excb.data.unusable_images import (
    drop_unusable,
    expand_labels,
    ignored_with_reasons,
    skipped_of,
    warn_if_nearly_black,
    warn_skipped,
)
from sklearn_excb.fitting.fit import fit
from sklearn_excb.fitting.partial_fit import OnlineFit
from sklearn_excb.fitting.several_devices import fit_on
from sklearn_excb.fitting.stream import Stream, stream_batch_size
from sklearn_excb.fitting.training_data import Collection
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.inference.learned import INPUT_FACTS, LearnedAttributes
from sklearn_excb.inference.samples import open_samples
from sklearn_excb.runtime.devices import number_of_devices
from sklearn_excb.runtime.process_state import seed_from, usual_modes
from sklearn_excb.runtime.rendezvous import join
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS, check_parameters
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.reading import number_of_jobs


class FittingMixin(LearnedAttributes):
    """Methods that fit an estimator: to a collection, to a stream, or part by part."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn clusters and embeddings.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Images, or feature vectors.

            - An array or tensor of shape (n, h, w), for gray images, or (n, h, w, c), of uint8,
              uint16 or floats in [0, 1].
            - A list of arrays or PIL images of any size.
            - A folder, with its subfolders, in natural order. The files of a folder come before
              its subfolders. Class folders are not needed. ``sample_names_`` has the file names.
            - A tar archive, such as WebDataset's, or a list of files or of archives.
            - A data set with ``__len__`` and ``__getitem__`` whose items are an image, a tuple that
              begins with an image, or a dict with an entry "image" (torchvision, Hugging Face). An
              item may also be the bytes of a file, or an open file.
            - An iterable (an ``IterableDataset``, a generator). It is read once, and its images are
              kept in memory as they are, unless ``steps_per_epoch`` is a number.
            - Feature vectors: 2-D rows (n, d), with features in one unit. As for k-means, put a
              StandardScaler before the estimator if the units differ.
        y : ignored
            Not used, present for the conventions of scikit-learn.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used. The subclass ``ImageError`` names the image.
        FloatingPointError
            If training diverges in the first epoch. The subclass ``DivergedError`` has the rows
            of the batch that diverged. After any error, the estimator keeps what it learned before.
        RankError
            If another process of the fit has failed or runs a different fit; a RuntimeError.
        OSError
            If ``checkpoint_dir`` cannot be written to at the start. The subclass
            ``BlockingIOError`` says that another fit uses the folder.
        KeyboardInterrupt
            If Ctrl-C was pressed during training. The training ends after the current step, and the
            images are assigned to clusters, so the estimator is fitted when the error is raised. A
            second Ctrl-C ends the fit at once, and the estimator keeps what it learned before.

        Warns
        -----
        CollapseWarning
            If the clusters collapse. The message names the parameter to change, or the cause in X.
        DivergenceWarning
            If training diverges after the first epoch. The message names the epoch. This class
            and CollapseWarning are subclasses of scikit-learn's ConvergenceWarning.
        DurationWarning
            If a CPU will need more than an hour. The message says how to reduce the time.
        MemoryWarning
            If the device has less free memory than the fit needs (:meth:`estimate_memory`).
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures in formats that are not read, such as HEIC.
        PixelRangeWarning
            If the images are nearly black, as 12-bit images stored in 16 bits are. The message says
            how to scale them.
        CheckpointWarning
            If a checkpoint could not be written, and the fit continues without it. Also if a
            checkpoint could not be read, and the fit resumes from the previous one.
        """
        context = FitContext.of(self, self.random_state)
        if self.steps_per_epoch != "auto":
            return self._fit_stream(X, context)
        ranks = context.ranks
        n_devices = number_of_devices(self.devices, context.device) if ranks.count == 1 else 1
        with unchanged_on_error(self), usual_modes():
            with ranks.together():
                source = open_samples(self, X, fitting=True)
                n_jobs = number_of_jobs(self.n_jobs, source)
                usable = drop_unusable(source, n_jobs, progress=context.shows_progress)
            skipped_before = skipped_of(source)
            warn_skipped(skipped_before, len(source))
            warn_if_nearly_black(usable)
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
        if len(self.skipped_) > len(skipped_before):  # the fit itself skipped more
            warn_skipped(self.skipped_, len(source))
        self._interrupt_if_stopped()
        return self

    def _fit_stream(self, X: Any, context: FitContext) -> Self:
        """Fit a stream, and keep only a sample of its images."""
        ranks = context.ranks
        if not is_stream(X):
            raise ValueError(
                "steps_per_epoch is for iterables without a length, but X has a length: an epoch "
                'is all of X. Leave steps_per_epoch="auto".'
            )
        if ranks.count == 1 and self.devices not in ("auto", 1):
            raise ValueError(
                "With steps_per_epoch, fit starts no processes, because each device needs its own "
                "stream. Start the processes with torchrun, or set devices=1."
            )
        self._check_trained_backbone("steps_per_epoch")
        n_jobs = effective_n_jobs(1 if isinstance(self.n_jobs, str) else self.n_jobs)
        size = stream_batch_size(context.parameters)
        parameters = {**context.parameters, "batch_size": size, "n_jobs": n_jobs}
        stream = Stream(X, parameters)
        with unchanged_on_error(self), usual_modes():
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
        """Learn from new samples, and continue from what was learned before.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Samples as in :meth:`fit`. Each call uses every sample once, in steps of at most
            ``batch_size``. The first call needs at least K samples, from which the centroids start.
        y : ignored
            Not used, present for the conventions of scikit-learn.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in :meth:`fit`. Also if parameters have changed since the first call, if the first
            call has fewer than K samples, or if ``checkpoint_dir`` or several ``devices`` are set.
        FloatingPointError
            ``DivergedError``, if the loss or the gradients are not finite. Any error undoes the
            whole call.

        Notes
        -----
        The method is online: cluster sizes and the teacher are running means. A stream has no known
        end, so the learning rate, the weight decay and the teacher's momentum stay as they are
        after the warm-up. The rules of "auto" assume a collection of 19.5 K samples, the paper's
        number, which is also the length of an epoch in ``history_``. ``K="auto"`` depends on the
        number of samples in the first call. ``epochs`` is only used by :meth:`fit`.

        A stream may change. Therefore half of the samples of each step are drawn at random from a
        uniform sample of all earlier ones. The sample has up to 19.5 K of them, at most 256 MB, and
        is also in pickles. The centroids settle (``settle_passes``) on this sample when the
        estimator is first used after a call, which takes one pass over the sample.

        The estimator then has no ``labels_``: use :meth:`predict`. After :meth:`fit`,
        :meth:`load` or unpickling, partial_fit continues from what was learned. The optimiser
        starts anew, unless the fit had ``warm_start=True`` or the estimator was unpickled. A later
        call of :meth:`fit` starts anew.
        """
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        context = FitContext(parameters, 0, self._device_of_partial_fit())
        online: OnlineFit | None = self.__dict__.get("_online")
        fitted: Fitted | None = self.__dict__.get("_fitted")
        with unchanged_on_error(self), usual_modes():
            source = open_samples(self, X, fitting=fitted is None and online is None)
            n_jobs = number_of_jobs(self.n_jobs, source)
            usable = drop_unusable(source, n_jobs)
            warn_if_nearly_black(usable)
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
            self.sample_names_ = np.array(source.names, dtype=object)
        if isinstance(source, ItemImages) and source.ignored is not None:
            self.ignored_files_ = np.array(ignored_with_reasons(source), dtype=object)
        self.skipped_ = skipped_of(source)

    def _interrupt_if_stopped(self) -> None:
        """Raise KeyboardInterrupt after a Ctrl-C, now that the estimator is fitted."""
        if self._fitted.stopped:
            raise KeyboardInterrupt(
                f"The training was stopped in epoch {self.history_[-1]['epoch']} of "
                f"{self._fitted.settings.epochs}. The estimator is fitted as of that epoch."
            )

    def _device_of_partial_fit(self) -> torch.device:
        """Return the device of partial_fit; raise for parameters that it does not support."""
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
                "partial_fit cannot continue the training of a published network, which has no "
                "student and no optimizer. Call fit, or use a new estimator."
            )
        return device

    def _check_trained_backbone(self, wanted: str, before: Fitted | None = None) -> None:
        """Raise for a frozen backbone, now or in the previous fit: a stream keeps no features."""
        if self.freeze_backbone or (before is not None and before.settings.freeze_backbone):
            raise ValueError(
                f"{wanted} cannot be used with freeze_backbone=True, because the features of a "
                "stream are not kept. Compute them with the backbone, and pass them as 2-D rows."
            )


def resolved_parameters(
    context: FitContext, settings: Settings, of_run: dict[str, Any]
) -> dict[str, Any]:
    """Return every parameter with "auto" replaced, except those of checkpoints."""
    named = context.parameters.items()
    chosen = {name: value for name, value in named if name not in CHECKPOINT_PARAMETERS}
    return chosen | of_run | settings.as_dict()


@contextmanager
def unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Restore every attribute if the body fails, so that a failed fit loses nothing."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise
