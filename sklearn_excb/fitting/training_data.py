"""The samples that a fit trains on: a collection that it reads again and again, or a stream."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from tqdm.auto import tqdm

from sklearn_excb.data.fingerprints import source_fingerprint
from sklearn_excb.data.sources import Source
from sklearn_excb.data.unusable_images import share_skipped
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import Model
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.frozen_features import feature_batches, features_of
from sklearn_excb.views.batches import Batches, ViewBatches


class TrainingData(Protocol):
    """The samples of a fit: a :class:`Collection` or a :class:`~.stream.Stream`."""

    @property
    def is_whole(self) -> bool:
        """Whether all samples can be read again, so that the fit labels them."""
        ...

    @property
    def n_samples(self) -> int:
        """Number of samples in an epoch."""
        ...

    def open(self, context: FitContext) -> AbstractContextManager[Source]:
        """Open all samples, or the first part of a stream."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """Return properties that differ between any two data sets."""
        ...

    def batches(
        self, model: Model, views: ViewBatches, bar: tqdm[Any], *, resumes: bool
    ) -> Batches:
        """Return the batches of the training.

        Parameters
        ----------
        model : Model
            Networks, on the device that trains, and settings.
        views : ViewBatches
            Batches of the source that :meth:`open` returned.
        bar : tqdm
            Progress bar, which says what takes time before the first step.
        resumes : bool
            Whether the networks come from a checkpoint.
        """
        ...

    def refill(self, batches: Batches, settings: Settings) -> Literal["done", "stopped"]:
        """Make up the samples for settling that a resumed fit lacks; "stopped" on Ctrl-C."""
        ...

    def close(self, ranks: Ranks) -> None:
        """Share what every rank has to know of the samples at the end."""
        ...


@dataclass(frozen=True)
class Collection:
    """A source of which every epoch reads all samples.

    Attributes
    ----------
    source : Source
        Images or rows, at least K of them.
    """

    source: Source
    is_whole = True

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.source)

    def open(self, context: FitContext) -> AbstractContextManager[Source]:
        """Return the source, which is open."""
        return nullcontext(self.source)

    def fingerprint(self) -> Mapping[str, Any]:
        """See :func:`sklearn_excb.data.fingerprints.source_fingerprint`."""
        return source_fingerprint(self.source)

    def batches(
        self, model: Model, views: ViewBatches, bar: tqdm[Any], *, resumes: bool
    ) -> ViewBatches:
        """Return batches of the samples; with a frozen backbone, of their features."""
        settings, ranks = model.settings, views.ranks
        if not settings.freeze_backbone:
            return views
        bar.set_description("ExCB: computing features")
        rows, mine = np.arange(len(self.source)), ranks.span(len(self.source))
        features = np.zeros((len(rows), model.n_features), np.float32)
        features[mine] = features_of(model.networks, views, settings, rows[mine])
        features = ranks.sum_array(features)
        return feature_batches(model.networks, views, settings, features, goes_on=resumes)

    def refill(self, batches: Batches, settings: Settings) -> Literal["done", "stopped"]:
        """Do nothing: the centroids settle on the collection."""
        return "done"

    def close(self, ranks: Ranks) -> None:
        """Share which images were skipped while the fit read them."""
        share_skipped(self.source, ranks)
