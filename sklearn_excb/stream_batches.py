"""From a stream to batches of views: each image as it comes, once; none is kept but a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sklearn_excb.batches import Batch, ViewBatches
from sklearn_excb.ranks import ALONE, Ranks
from sklearn_excb.reservoir import Reservoir, samples_of, source_of
from sklearn_excb.sources import Source
from sklearn_excb.threads import finished, reading_threads
from sklearn_excb.views import ViewRecipe

_AHEAD = 2  # batches that are read while an accelerator is at work


@dataclass(frozen=True)
class StreamBatches:
    """Batches of views of what comes, where :class:`ViewBatches` has what is there.

    Attributes
    ----------
    parts : iterator of Source
        Each is this rank's share of a batch, or what can be used of it.
    views : ViewBatches
        Of the first of them: its recipe, seed and device are those of all.
    steps_per_epoch, n_epochs : int
    kept : Reservoir
        Takes a sample of what was learned from.
    """

    parts: Iterator[Source]
    views: ViewBatches
    steps_per_epoch: int
    n_epochs: int
    kept: Reservoir

    @property
    def seed(self) -> int:
        """Of every draw."""
        return self.views.seed

    @property
    def device(self) -> torch.device:
        """Where the views end."""
        return self.views.device

    @property
    def ranks(self) -> Ranks:
        """Those that share each batch, each with a stream of its own."""
        return self.views.ranks

    @property
    def n_ahead(self) -> int:
        """Batches that are read while one is used, by a thread.

        None where ``n_jobs`` is 1: the stream may want to be read by the thread it knows.
        """
        return _AHEAD if self.views.n_jobs > 1 and self.device.type != "cpu" else 0

    def start(self, n: int) -> Iterator[Batch]:
        """One global view of the images of n batches, the first and the second by turns."""
        for number in range(n):
            yield from self._batch(next(self.parts), 0, number % 2)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches of the steps that are left after so many: what comes now."""
        n_steps = self.n_epochs * self.steps_per_epoch
        with reading_threads(1, aside=self.n_ahead > 0) as read:

            def begin(_: int) -> Callable[[], Source]:
                opened = read(lambda _: self._opened(), [_])
                return lambda: next(opened)

            for source in finished(map(begin, range(step, n_steps)), self.n_ahead):
                step += 1
                epoch = -(-step // self.steps_per_epoch)
                for batch in self._batch(source, step):
                    yield batch._replace(epoch=epoch)

    def rows(self, step: int) -> list[int]:
        """None: what came has no numbers by which it could be found."""
        return []

    def keep_more(self, n: int) -> None:
        """Read on until the sample is one of n images, without learning from them."""
        while self.kept.n_offered < n:
            self._opened()

    def inputs(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """Yield n of the samples that were kept, as inference sees them."""
        kept = source_of(self.kept.draw(0, n), self.views.source.n_channels)
        return replace(self.views, source=kept).whole(batch_size)

    def _opened(self) -> Source:
        """The next part, opened: kept in memory until its step, some of it longer."""
        source, recipe = next(self.parts), self.views.recipe
        side = recipe.side_for_crops if isinstance(recipe, ViewRecipe) else 0
        every = np.arange(len(source))
        samples = samples_of(source, every, side=side, n_jobs=self.views.n_jobs)
        self.kept.offer(samples)
        return source_of(samples, source.n_channels)

    def _batch(self, source: Source, number: int, only: int | None = None) -> Iterator[Batch]:
        """The batch of a part, filled up where images were left out; draws go by its number."""
        of_all, n_epochs = self.views.batch_size, self.n_epochs * self.steps_per_epoch
        mine = self.ranks.span(of_all)
        own = replace(
            self.views,
            source=source,
            batch_size=mine.stop - mine.start,
            n_epochs=n_epochs,
            seed=_of_rank(self.seed, self.ranks.rank),
            ranks=ALONE,
        )
        for batch in own.of_rows(number, np.arange(len(source)), only):
            yield batch._replace(n_together=of_all)


def _of_rank(seed: int, rank: int) -> int:
    """A seed for each rank: their images have the same numbers."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) if rank else seed
