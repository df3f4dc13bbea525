"""Samples of a fit: a collection that it reads in every epoch, or a stream."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from tqdm.auto import tqdm

from sklearn_excb.data.fingerprints import may_draw, source_fingerprint
from sklearn_excb.data.sources import Source
from sklearn_excb.data.unusable_images import share_skipped
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import Model
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.frozen_features import feature_batches, features_of
from sklearn_excb.training.neighborhoods import row_batches
from sklearn_excb.views.batches import Batches, ViewBatches


class TrainingData(Protocol):
    """Samples of a fit: a :class:`Collection` or a :class:`~.stream.Stream`."""

    @property
    def is_whole(self) -> bool:
        """Whether all samples can be read again, so that the fit labels them."""
        ...

    @property
    def n_samples(self) -> int:
        """Number of samples in an epoch."""
        ...

    @property
    def may_draw(self) -> bool:
        """Whether reading samples may draw from the generators of the process."""
        ...

    def open(self, context: FitContext) -> AbstractContextManager[Source]:
        """Open all samples, or the first part of a stream."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the properties by which a resumed fit recognises the same data."""
        ...

    def batches(
        self, model: Model, views: ViewBatches, bar: tqdm[Any], *, resumes: bool
    ) -> Batches:
        """Return the batches of the training.

        Parameters
        ----------
        model : Model
            Networks on the training device, and settings.
        views : ViewBatches
            Batches of the source that :meth:`open` returned.
        bar : tqdm
            Progress bar, which names the work before the first step.
        resumes : bool
            Whether the networks come from a checkpoint.
        """
        ...

    def refill(self, batches: Batches, settings: Settings) -> Literal["done", "stopped"]:
        """Read the samples for settling that a resumed fit lacks; return "stopped" on Ctrl-C."""
        ...

    def close(self, ranks: Ranks) -> None:
        """Share with every rank what it has to know about the samples at the end."""
        ...


@dataclass(frozen=True)
class Collection:
    """Source whose samples are all read in every epoch.

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

    @property
    def may_draw(self) -> bool:
        """Whether the source is a data set of the user."""
        return may_draw(self.source)

    def open(self, context: FitContext) -> AbstractContextManager[Source]:
        """Return the source, which is open already."""
        return nullcontext(self.source)

    def fingerprint(self) -> Mapping[str, Any]:
        """Return :func:`sklearn_excb.data.fingerprints.source_fingerprint` of the source."""
        return source_fingerprint(self.source)

    def batches(
        self, model: Model, views: ViewBatches, bar: tqdm[Any], *, resumes: bool
    ) -> ViewBatches:
        """Return batches of the samples, or of their features if the backbone is frozen."""
        settings, ranks = model.settings, views.ranks
        if not settings.freeze_backbone:
            return row_batches(model.networks, views, settings, goes_on=resumes)
        bar.set_description("ExCB: computing features")
        rows, mine = np.arange(len(self.source)), ranks.span(len(self.source))
        bar.reset(total=len(rows[mine]))
        features = np.zeros((len(rows), model.n_features), np.float32)
        with ranks.together():
            features[mine] = features_of(
                model.networks, views, settings, rows[mine], count=bar.update
            )
        features = ranks.sum_array(features)
        return feature_batches(model.networks, views, settings, features, goes_on=resumes)

    def refill(self, batches: Batches, settings: Settings) -> Literal["done", "stopped"]:
        """Do nothing: the centroids settle on the collection."""
        return "done"

    def close(self, ranks: Ranks) -> None:
        """Share with every rank the images that the fit skipped."""
        share_skipped(self.source, ranks)
