"""predict and transform."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import metadata_routing
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_excb.data.open_source import is_stream
from sklearn_excb.data.sources import Skipped, Source
from sklearn_excb.data.unusable_images import fill_skipped, skipped_of
from sklearn_excb.exceptions import RenamedWarning
from sklearn_excb.inference.devices import inference_devices, split_among_devices
from sklearn_excb.inference.learned import LearnedAttributes
from sklearn_excb.inference.samples import open_samples
from sklearn_excb.inference.stream import infer_stream
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.process_state import usual_modes
from sklearn_excb.settings.validation import check_out, check_parameters
from sklearn_excb.training.coarse_groups import check_n_groups, cut
from sklearn_excb.training.teacher_outputs import Embedding, assign, embed
from sklearn_excb.views.reading import number_of_jobs
from sklearn_excb.views.whole_images import inference_inputs


class InferenceMixin(TransformerMixin, LearnedAttributes):
    """Inference with the teacher of a fitted estimator."""

    # pipelines and searches never use these arguments, so nobody has to request their routing
    __metadata_request__predict = {  # noqa: RUF012 - as scikit-learn reads it
        "n_groups": metadata_routing.UNUSED,
        "n_clusters": metadata_routing.UNUSED,
        "out": metadata_routing.UNUSED,
    }
    __metadata_request__transform = {"out": metadata_routing.UNUSED}  # noqa: RUF012

    def predict(
        self,
        X: Any,
        *,
        n_groups: int | None = None,
        out: npt.NDArray[Any] | None = None,
        n_clusters: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """Return the cluster of each sample: the centroid most similar to its projection.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Samples as in :meth:`fit`. The images of an iterable are not kept.
        n_groups : int, optional
            Number of groups to merge the K clusters into (``linkage_``). Groups are nested: each
            group of a finer division is part of one group of a coarser division. Groups are
            numbered in the order of their lowest cluster.
        out : ndarray of shape (n_samples,), int64, optional
            Array to write to, such as a memory-mapped file. No more than a batch is then in memory.
        n_clusters : int, optional
            Old name of ``n_groups``.

        Returns
        -------
        ndarray of shape (n_samples,), int64
            Labels in 0..K-1, or 0..n_groups-1; -1 for images that were skipped. Labels are
            not balanced. The array is ``out``, if that was passed.

        Raises
        ------
        ValueError
            If ``n_groups`` is not an integer from 1 to K.

        Warns
        -----
        RenamedWarning
            If ``n_clusters`` is passed.
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures in formats that are not read, such as HEIC.
        PixelRangeWarning
            If many images are all nearly black; see :meth:`fit`.
        """
        check_is_fitted(self)
        self._need_clusters("predict")
        if n_clusters is not None:
            if n_groups is not None:
                raise TypeError("n_clusters is the old name of n_groups. Pass only n_groups.")
            warn_caller(
                "The parameter n_clusters of predict is now n_groups; the old name will go. Pass "
                f"n_groups={n_clusters!r}.",
                RenamedWarning,
            )
            n_groups = n_clusters
        groups = None
        if n_groups is not None:
            check_n_groups(n_groups, self._fitted.settings.K)
            groups = cut(self.linkage_, n_groups)

        def assigned(source: Source, out: npt.NDArray[Any] | None) -> npt.NDArray[np.int64]:
            found = check_out(out, (len(source),), np.int64)
            self._infer(
                source,
                np.arange(len(source)),
                lambda teacher, inputs, rows: assign(teacher, inputs, groups, out=found[rows]),
            )
            return found

        return self._apply(assigned, X, out, fill=-1)

    def transform(self, X: Any, *, out: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float32]:
        """Embed samples.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Samples as in :meth:`fit`. The images of an iterable are not kept.
        out : ndarray of shape (n_samples, d), float32, optional
            Array to write to, such as a memory-mapped file. No more than a batch is then in memory.

        Returns
        -------
        ndarray of shape (n_samples, d), float32
            Embeddings of the kind that ``embedding`` names; d is 256 for "projection", the number
            of the backbone's features for "backbone", and K for "similarity". NaN for images that
            were skipped. The array is ``out``, if that was passed, in the container that
            ``set_output`` sets.

        Warns
        -----
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures in formats that are not read, such as HEIC.
        PixelRangeWarning
            If many images are all nearly black; see :meth:`fit`.
        """
        wanted = cast(Embedding, self.embedding)

        def embedded(source: Source, out: npt.NDArray[Any] | None) -> npt.NDArray[np.float32]:
            found = check_out(out, (len(source), self._width(wanted)), np.float32)
            self._infer(
                source,
                np.arange(len(source)),
                lambda teacher, inputs, rows: embed(teacher, inputs, wanted, out=found[rows]),
            )
            return found

        return self._apply(embedded, X, out, fill=np.nan)

    def _apply(
        self,
        function: Callable[[Source, npt.NDArray[Any] | None], npt.NDArray[Any]],
        X: Any,
        out: npt.NDArray[Any] | None,
        *,
        fill: float,
    ) -> npt.NDArray[Any]:
        """Apply a function to the opened samples, with ``fill`` for images that were skipped."""
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        if is_stream(X):
            found, skipped = infer_stream(
                lambda part: open_samples(self, part, fitting=False), function, X, out
            )
        else:
            source = open_samples(self, X, fitting=False)
            found, skipped = function(source, out), skipped_of(source)
        return fill_skipped(found, skipped, fill=fill)

    def _open_indexed(self, X: Any) -> Source:
        """Open samples that can be indexed."""
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        if is_stream(X):
            raise ValueError(
                "X can only be iterated, so an interrupted run could not resume. Pass a folder, a "
                "list of files or a data set with a length, or use transform."
            )
        return open_samples(self, X, fitting=False)

    def _results_of(
        self, source: Source, rows: npt.NDArray[np.int64], of: str
    ) -> tuple[npt.NDArray[Any], list[Skipped]]:
        """Return labels or embeddings of some rows, and the skipped images among them.

        ``of`` is "predict", "transform" or an embedding, which overrides ``embedding``.
        """
        wanted = cast(Embedding, self.embedding if of == "transform" else of)
        if of == "predict":
            self._need_clusters("predict")
            found: npt.NDArray[Any] = np.empty(len(rows), np.int64)
        else:
            found = np.empty((len(rows), self._width(wanted)), np.float32)

        def infer(teacher: ClusterNetwork, inputs: Iterator[Tensor], some: slice) -> None:
            if of == "predict":
                assign(teacher, inputs, out=found[some])
            else:
                embed(teacher, inputs, wanted, out=found[some])

        self._infer(source, rows, infer)
        within = {int(row): place for place, row in enumerate(rows)}
        skipped = [image for image in skipped_of(source) if image.index in within]
        found[[within[image.index] for image in skipped]] = -1 if of == "predict" else np.nan
        return found, skipped

    def _project_and_label(
        self, source: Source, network: ClusterNetwork | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the projections of transform and the labels of predict, in one pass.

        ``network`` replaces the fitted network.
        """
        self._need_clusters("predict")
        network = self._fitted.teacher if network is None else network
        projections = np.empty((len(source), network.centroids.weight.shape[1]), np.float32)
        labels = np.empty(len(source), np.int64)

        def infer(teacher: ClusterNetwork, inputs: Iterator[Tensor], some: slice) -> None:
            assign(teacher, inputs, out=labels[some], projections=projections[some])

        self._infer(source, np.arange(len(source)), infer, network)
        skipped = [image.index for image in skipped_of(source)]
        projections[skipped], labels[skipped] = np.nan, -1
        return projections, labels

    def _infer(
        self,
        source: Source,
        rows: npt.NDArray[np.int64],
        work: Callable[[ClusterNetwork, Iterator[Tensor], slice], None],
        network: ClusterNetwork | None = None,
    ) -> None:
        """Call ``work`` with the teacher and the prepared batches of the rows, on every device."""
        devices = inference_devices(self.device, self.devices, source)
        n_jobs = max(1, number_of_jobs(self.n_jobs, source) // len(devices))
        size = self._fitted.settings.inference_batch

        def infer(teacher: ClusterNetwork, device: torch.device, some: slice) -> None:
            inputs = inference_inputs(
                source,
                self._fitted.recipe,
                batch_size=size,
                n_jobs=n_jobs,
                device=device,
                sample=rows[some],
            )
            work(teacher, inputs, some)

        teacher = self._fitted.teacher if network is None else network
        with usual_modes():
            split_among_devices(devices, teacher, len(rows), size, infer)
