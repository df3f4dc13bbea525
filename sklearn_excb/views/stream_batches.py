"""Batches of views from a stream, which use each image once and keep only a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.data.sources import Source
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.threads import Map, read_ahead, reader_threads
from sklearn_excb.runtime.transfers import StepLimiter
from sklearn_excb.views.batches import Batch, ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reading import AHEAD
from sklearn_excb.views.reservoir import Reservoir, samples_of, source_of
from sklearn_excb.views.row_views import RowRecipe


@dataclass(frozen=True)
class StreamBatches:
    """Batches of views of a stream; the counterpart of :class:`ViewBatches`.

    Attributes
    ----------
    parts : iterator of Source
        Usable samples of this rank's share of each batch.
    recipe : ViewRecipe or RowRecipe
        Recipe of the views.
    n_channels : int
        Number of channels of the images.
    batch_size, steps_per_epoch, n_epochs, seed, n_jobs : int
        Images per batch over all ranks, steps per epoch, length of the run, seed of all random
        draws, and number of reading threads.
    device : torch.device
        Device of the views.
    ranks : Ranks
        Ranks that share each batch, each with its own stream.
    n_start : int
        Number of batches from which the centroids start.
    kept : Reservoir
        Sample of the images that this rank has trained on.
    """

    parts: Iterator[Source]
    recipe: ViewRecipe | RowRecipe
    n_channels: int
    batch_size: int
    steps_per_epoch: int
    n_epochs: int
    seed: int
    n_jobs: int
    device: torch.device
    ranks: Ranks
    n_start: int
    kept: Reservoir

    @property
    def n_ahead(self) -> int:
        """Number of batches that a thread reads while an accelerator works on another batch.

        The number is 0 on a CPU. It is also 0 if ``n_jobs`` is 1, because the stream may require
        that the calling thread reads it.
        """
        return AHEAD if self.n_jobs > 1 and self.device.type != "cpu" else 0

    def start(self) -> Iterator[Batch]:
        """Yield the first batches, one global view of each: the first and the second by turns."""
        for number in range(self.n_start):
            yield self._batch(next(self.parts), 0, number % 2)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches of the steps that remain after ``step``, from the next samples."""
        left, limiter = self.n_epochs * self.steps_per_epoch - step, StepLimiter(self.device)
        with reader_threads(self.n_jobs) as read:
            for source in read_ahead(partial(self._opened, read), left, self.n_ahead):
                step += 1
                batch = self._batch(source, step)
                limiter.wait()
                yield batch._replace(epoch=-(-step // self.steps_per_epoch))

    def rows(self, step: int) -> list[int]:
        """Return [], because the samples of a stream have no row numbers."""
        return []

    def keep_more(self, wanted: Callable[[], bool]) -> None:
        """Read without training until the sample is full or ``wanted`` returns False."""
        with reader_threads(self.n_jobs) as read:
            while wanted() and not self.kept.is_full:
                self._opened(read)

    def n_kept(self) -> int:
        """Number of kept samples: of each rank as many as of the one with the fewest."""
        return min(self.ranks.objects(len(self.kept))) * self.ranks.count

    def whole(self, batch_size: int, sample: npt.NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield as many of this rank's kept samples as ``sample`` has, as inference sees them."""
        if not len(sample):
            return iter(())
        drawn = source_of(self.kept.draw(0, len(sample)), self.n_channels)
        return self._views_of(drawn).whole(batch_size)

    def _opened(self, read: Map) -> Source:
        """Open the next part into memory, and offer its samples to the reservoir."""
        part = next(self.parts)
        samples = samples_of(part, np.arange(len(part)), self.recipe, read)
        self.kept.offer(samples)
        return source_of(samples, part.n_channels)

    def _batch(self, source: Source, number: int, only: int | None = None) -> Batch:
        """Return the batch of a part, filled up if images are missing, with draws by ``number``."""
        (batch,) = self._views_of(source).of_rows(number, np.arange(len(source)), only)
        return batch._replace(n_together=self.batch_size)

    def _views_of(self, source: Source) -> ViewBatches:
        """Return batches of this rank's share, with a seed per rank as all ranks number alike."""
        mine, rank = self.ranks.span(self.batch_size), self.ranks.rank
        of_rank = np.random.SeedSequence([self.seed, rank]).generate_state(1)[0]
        return ViewBatches(
            source,
            self.recipe,
            mine.stop - mine.start,
            self.n_epochs * self.steps_per_epoch,
            int(of_rank) if rank else self.seed,
            self.n_jobs,
            self.device,
        )
