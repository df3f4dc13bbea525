"""Batches of views from a source, for training.

Threads open, crop and resize images that have to be opened one by one, so at most one full-size
image per thread is in memory. Random draws do not depend on threads, so the number of threads
changes only the speed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows, Source
from sklearn_excb.runtime.philox import permutation
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.runtime.threads import Map, finished, reader_threads
from sklearn_excb.runtime.transfers import StepLimiter, is_pinned_for, to_device
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.neighbor_views import NeighborViews
from sklearn_excb.views.row_views import RowRecipe, make_row_views, standardize
from sklearn_excb.views.view_maker import (
    Drawn,
    Finish,
    array_views,
    begin_crops,
    begin_views,
    finish_crops,
)
from sklearn_excb.views.whole_images import inference_inputs

Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Views of B images, one group per resolution: (G * B, ...) and, if L > 0, (L * B, ...).

    Each process has its share of the images of a step, and ``n_together`` is the number of images
    over all processes.
    """

    epoch: int
    groups: Sequence[Tensor]
    n_images: int
    n_together: int


class Batches(Protocol):
    """Interface of training batches: :class:`ViewBatches`, or the batches of a stream."""

    @property
    def seed(self) -> int:
        """Seed of all random draws."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the views."""
        ...

    @property
    def ranks(self) -> Ranks:
        """Ranks that share each batch."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        ...

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches that remain after ``step`` steps."""
        ...

    def start(self) -> Iterator[Batch]:
        """Yield batches of one global view, on which the centroids start."""
        ...

    def rows(self, step: int) -> list[int]:
        """Return the rows of X in a step; empty if the samples have no row numbers."""
        ...

    def n_kept(self) -> int:
        """Number of samples, on all ranks together, that inference can read again."""
        ...

    def whole(self, batch_size: int, sample: Indices) -> Iterator[Tensor]:
        """Yield kept samples as inference sees them; each rank asks for its own share."""
        ...


@dataclass(frozen=True)
class ViewBatches:
    """Batches of views of a source, epoch by epoch.

    Attributes
    ----------
    source : Source
        Source of the samples.
    recipe : ViewRecipe or RowRecipe
        Recipe of the views.
    batch_size, n_epochs, seed, n_jobs : int
        Images per batch over all ranks, length of the run, seed of all random draws, and number of
        reading threads.
    device : torch.device
        Device of the views.
    n_ahead : int, default=0
        Number of batches that are begun while one batch is used.
    ranks : Ranks, default=ALONE
        Ranks that share every batch.
    n_of_stream : int, optional
        Samples of an epoch, if the source holds only the first samples of a stream.
    neighbors : NeighborViews, optional
        Neighbourhoods of rows, whose views replace those with noise.

    Notes
    -----
    On a CPU, later batches overwrite the memory of the views. A batch is valid until the next batch
    is requested.
    """

    source: Source
    recipe: ViewRecipe | RowRecipe
    batch_size: int
    n_epochs: int
    seed: int
    n_jobs: int
    device: torch.device
    n_ahead: int = 0
    ranks: Ranks = ALONE
    n_of_stream: int | None = None
    neighbors: NeighborViews | None = None

    @property
    def n_samples(self) -> int:
        """Number of samples of an epoch."""
        return len(self.source) if self.n_of_stream is None else self.n_of_stream

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches of an epoch, without the last partial batch."""
        return len(self.source) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the shuffled full batches of every epoch."""
        return self.from_step(0)

    def from_step(self, step: int) -> Generator[Batch, None, None]:
        """Yield the batches that remain after ``step`` steps, as in an uninterrupted run."""
        done, within = divmod(step, self.steps_per_epoch)
        return self._batches(
            (epoch, rows, None)
            for epoch in range(done + 1, self.n_epochs + 1)
            for rows in self.order(epoch)[within if epoch == done + 1 else 0 :]
        )

    def order(self, epoch: int) -> Indices:
        """Return the rows of each step of an epoch, (steps, B), as a function of (seed, epoch)."""
        n_kept = self.steps_per_epoch * self.batch_size
        rows = permutation(self.seed, epoch, len(self.source))[:n_kept]
        return rows.reshape(-1, self.batch_size)

    def start(self) -> Iterator[Batch]:
        """Yield one global view of every image, as epoch 0.

        Batches use the first and the second global view by turns, or only the first, of the longest
        walks, if views are neighbourhoods. The last batch is filled up with the first images.
        """
        rows = self._filled(permutation(self.seed, 0, len(self.source)))
        n_used = 1 if self.neighbors else 2
        return self._batches((0, some, number % n_used) for number, some in enumerate(rows))

    def of_rows(self, epoch: int, rows: Indices, only: int | None = None) -> Iterator[Batch]:
        """Yield views of rows in the given order: all views, or the global view ``only``.

        The last batch is filled up with the first rows.
        """
        return self._batches((epoch, some, only) for some in self._filled(rows))

    def rows(self, step: int) -> list[int]:
        """Return the rows of X in a step, in the order of the step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self.order(epoch + 1)[within]
        source = self.source
        return (source.places[rows] if isinstance(source, ItemImages) else rows).tolist()

    def _filled(self, rows: Indices) -> Indices:
        """Arrange rows in full batches, (batches, B), and fill the last one with the first rows."""
        return np.resize(rows, (-(-len(rows) // self.batch_size), self.batch_size))

    def _batches(
        self, wanted: Iterable[tuple[int, Indices, int | None]]
    ) -> Generator[Batch, None, None]:
        """Yield a batch per (epoch, rows, view), of all views or of one global view."""
        memory: deque[list[Tensor]] = deque([] for _ in range(self.n_ahead + 1))
        limiter = StepLimiter(self.device)
        with reader_threads(self.n_jobs, aside=self.n_ahead > 0) as read:

            def begin(epoch: int, together: Indices, only: int | None) -> Callable[[], Batch]:
                memory.rotate()
                rows = together[self.ranks.span(len(together))]
                finish = self._begin(rows, epoch, only, memory[0], read)

                def end() -> Batch:
                    limiter.wait()
                    return Batch(epoch, finish(), len(rows), len(together))

                return end

            yield from finished((begin(*of) for of in wanted), self.n_ahead)

    def _begin(
        self, rows: Indices, epoch: int, only: int | None, memory: list[Tensor], read: Map
    ) -> Finish:
        """Begin the views of rows, with one tensor per resolution."""
        recipe, source = self.recipe, self.source
        if isinstance(recipe, RowRecipe):
            assert isinstance(source, Rows)
            kinds = recipe.kinds() if only is None else [np.array([only])]
            made = [self._row_views(source, recipe, rows, epoch, views) for views in kinds]
            return lambda: made
        assert not isinstance(source, Rows)
        drawn = self.draw(rows, epoch, only)
        if isinstance(source, ArrayImages):
            return lambda: array_views(source, rows, drawn, memory, self.device)
        if self.device.type == "cpu":
            return begin_views(source, rows, drawn, memory, read)
        pinned = is_pinned_for(self.device)
        room = [] if pinned else memory  # a copy of the previous crops may still be running
        crops = begin_crops(source, rows, drawn, room, read, pinned=pinned)
        return lambda: finish_crops([to_device(c, self.device) for c in crops()], drawn)

    def _row_views(
        self, source: Rows, recipe: RowRecipe, rows: Indices, epoch: int, views: Indices
    ) -> Tensor:
        """Make views (V * B, d) of rows: of their neighbourhoods, or with noise."""

        def load(some: Indices) -> npt.NDArray[np.float32]:
            return standardize(source.load(some), recipe).numpy()

        if self.neighbors is None:
            x = to_device(torch.from_numpy(load(rows)), self.device)
            return make_row_views(x, rows, self.seed, epoch, recipe, views)
        made = [self.neighbors.make(load, rows, self.seed, epoch, int(view)) for view in views]
        return to_device(torch.from_numpy(np.concatenate(made)), self.device)

    def n_kept(self) -> int:
        """Number of samples: all of them can be read again."""
        return len(self.source)

    def whole(self, batch_size: int, sample: Indices | None = None) -> Iterator[Tensor]:
        """Yield samples as inference uses them; see :func:`inference_inputs`."""
        return inference_inputs(
            self.source,
            self.recipe,
            batch_size=batch_size,
            n_jobs=self.n_jobs,
            device=self.device,
            sample=sample,
        )

    def draw(self, rows: Indices, epoch: int, only: int | None = None) -> Drawn:
        """Draw the operations for rows, for all views or for the global view ``only``."""
        assert isinstance(self.recipe, ViewRecipe)
        kinds = self.recipe.kinds(max(0, epoch - 1) / max(1, self.n_epochs))
        kinds = kinds if only is None else [kinds[0].only(only)]
        return Drawn.of(self.seed, epoch, rows, kinds, self.recipe)
