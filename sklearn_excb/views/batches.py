"""From a source to batches: of views for training, of whole images for inference.

Images that have to be opened one by one are opened, cropped and resized by threads, so
that no more than one full-size image a thread is in memory. What is drawn for a view depends on no
thread: their number changes nothing but the speed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from torch import Tensor

from sklearn_excb.data.resampling import centre_crop, resize_short_side, trim_length
from sklearn_excb.data.sources import ArrayImages, ItemImages, Rows, Source
from sklearn_excb.runtime.buffers import BufferPool
from sklearn_excb.runtime.philox import permutation
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.runtime.threads import Map, finished, reader_threads
from sklearn_excb.runtime.transfers import StepLimiter, is_pinned_for, to_device
from sklearn_excb.views.augmentation import normalize
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe, make_row_views, standardize
from sklearn_excb.views.view_maker import (
    Drawn,
    Finish,
    array_views,
    begin_crops,
    begin_views,
    finish_crops,
    parts,
)

Indices = npt.NDArray[np.int64]

_MOST_THREADS = 8
AHEAD = 2  # batches that are read while an accelerator is at work; a CPU has no core for that


def n_ahead(source: Source, n_jobs: int, device: torch.device) -> int:
    """Batches that threads begin while one is used.

    None where nothing is opened, nor of a data set that may want to be read by the thread it knows.
    """
    opened_aside = isinstance(source, ItemImages) and (source.reads_in_parallel or n_jobs > 1)
    return AHEAD if opened_aside and device.type != "cpu" else 0


class Batch(NamedTuple):
    """Views of B images, a group a resolution: (G * B, ...) and, if L > 0, (L * B, ...).

    Of the images of a step a process has its share: ``n_together`` is how many all have.
    """

    epoch: int
    groups: Sequence[Tensor]
    n_images: int
    n_together: int


def number_of_jobs(n_jobs: int | str | None, source: Source) -> int:
    """Threads that open images; "auto" is one where nothing is opened, else one a core up to 8."""
    if isinstance(n_jobs, str):
        return min(_MOST_THREADS, effective_n_jobs(-1)) if source.reads_in_parallel else 1
    return effective_n_jobs(n_jobs)


class Batches(Protocol):
    """What a training reads: :class:`ViewBatches`, or those of a stream."""

    @property
    def seed(self) -> int:
        """Of every draw."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the views end."""
        ...

    @property
    def ranks(self) -> Ranks:
        """Those that share each batch."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        ...

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches that are left after so many steps."""
        ...

    def start(self) -> Iterator[Batch]:
        """Yield batches of one global view, on which the centroids start."""
        ...

    def rows(self, step: int) -> list[int]:
        """Rows of X in a step; empty where rows have no numbers."""
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
        What to read.
    recipe : ViewRecipe or RowRecipe
        What the views are.
    batch_size, n_epochs, seed, n_jobs : int
        Images a batch, of all ranks together; length of the run, seed of every draw, reading
        threads.
    device : torch.device
        Where the views end.
    n_ahead : int, default=0
        Batches that are begun while one is used.
    ranks : Ranks, default=ALONE
        Of which this one gets its share of every batch.
    n_of_stream : int, optional
        Samples of an epoch where the source holds only the first of a stream.

    Notes
    -----
    On a CPU the views lie in memory that later batches overwrite: a batch holds until the next one
    is asked for.
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

    @property
    def n_samples(self) -> int:
        """Samples of an epoch."""
        return len(self.source) if self.n_of_stream is None else self.n_of_stream

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; the last partial one is dropped."""
        return len(self.source) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the shuffled full batches of every epoch."""
        return self.from_step(0)

    def from_step(self, step: int) -> Generator[Batch, None, None]:
        """Yield the batches that are left after so many steps, the same ones as in a whole run."""
        done, within = divmod(step, self.steps_per_epoch)
        return self._batches(
            (epoch, rows, None)
            for epoch in range(done + 1, self.n_epochs + 1)
            for rows in self.order(epoch)[within if epoch == done + 1 else 0 :]
        )

    def order(self, epoch: int) -> Indices:
        """Rows of each step of an epoch, (steps, B); a function of (seed, epoch)."""
        n_kept = self.steps_per_epoch * self.batch_size
        rows = permutation(self.seed, epoch, len(self.source))[:n_kept]
        return rows.reshape(-1, self.batch_size)

    def start(self) -> Iterator[Batch]:
        """Every image once, as epoch 0, one global view: the first and the second by turns.

        The last batch is filled up with the first images.
        """
        rows = self._filled(permutation(self.seed, 0, len(self.source)))
        return self._batches((0, some, number % 2) for number, some in enumerate(rows))

    def of_rows(self, epoch: int, rows: Indices, only: int | None = None) -> Iterator[Batch]:
        """Views of some rows in their order, all or one of the global ones.

        The last batch is filled up with the first of them.
        """
        return self._batches((epoch, some, only) for some in self._filled(rows))

    def rows(self, step: int) -> list[int]:
        """Rows of X in a step, in their order there."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self.order(epoch + 1)[within]
        source = self.source
        return (source.places[rows] if isinstance(source, ItemImages) else rows).tolist()

    def _filled(self, rows: Indices) -> Indices:
        """Rows in full batches, (batches, B), the last one filled up with the first of them."""
        return np.resize(rows, (-(-len(rows) // self.batch_size), self.batch_size))

    def _batches(
        self, wanted: Iterable[tuple[int, Indices, int | None]]
    ) -> Generator[Batch, None, None]:
        """Batches of an epoch, of rows, of all views or of one of the global ones."""
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
        """Begin the views of some rows, a tensor a resolution."""
        recipe, source = self.recipe, self.source
        if isinstance(recipe, RowRecipe):
            assert isinstance(source, Rows)
            x = to_device(standardize(source.load(rows), recipe), self.device)
            of_rows = recipe.kinds() if only is None else [np.array([only])]
            made = [make_row_views(x, rows, self.seed, epoch, recipe, views) for views in of_rows]
            return lambda: made
        assert not isinstance(source, Rows)
        drawn = self.draw(rows, epoch, only)
        if isinstance(source, ArrayImages):
            return lambda: array_views(source, rows, drawn, memory, self.device)
        if self.device.type == "cpu":
            return begin_views(source, rows, drawn, memory, read)
        pinned = is_pinned_for(self.device)
        room = [] if pinned else memory  # a copy of the last crops may still be under way
        crops = begin_crops(source, rows, drawn, room, read, pinned=pinned)
        return lambda: finish_crops([to_device(c, self.device) for c in crops()], drawn)

    def n_kept(self) -> int:
        """Number of samples: all of them can be read again."""
        return len(self.source)

    def whole(self, batch_size: int, sample: Indices | None = None) -> Iterator[Tensor]:
        """Samples as inference sees them; see :func:`inference_inputs`."""
        return inference_inputs(
            self.source,
            self.recipe,
            batch_size=batch_size,
            n_jobs=self.n_jobs,
            device=self.device,
            sample=sample,
        )

    def draw(self, rows: Indices, epoch: int, only: int | None = None) -> Drawn:
        """Draw what is done to some rows, for all views or for one of the global ones."""
        assert isinstance(self.recipe, ViewRecipe)
        kinds = self.recipe.kinds(max(0, epoch - 1) / max(1, self.n_epochs))
        kinds = kinds if only is None else [kinds[0].only(only)]
        return Drawn.of(self.seed, epoch, rows, kinds, self.recipe)


def whole_images(images: Tensor, recipe: ViewRecipe) -> Tensor:
    """Images (B, c, h, w) as inference sees them: (B, c, size, size), normalised.

    The short side is resized to 8/7 of the global views and the centre cropped; below 64 px,
    where a margin is a large part of the image, it is resized to the size itself.
    """
    resized = resize_short_side(trim_length(images), whole_side(recipe), recipe.whole_filter)
    return normalize(centre_crop(resized, recipe.global_size), recipe.mean, recipe.std)


def whole_side(recipe: ViewRecipe) -> int:
    """Pixels that the short side of a whole image is resized to."""
    size = recipe.global_size
    return size if size < 64 else round(size * 8 / 7)


def inference_inputs(
    source: Source,
    recipe: ViewRecipe | RowRecipe,
    *,
    batch_size: int,
    n_jobs: int,
    device: torch.device,
    sample: Indices | None = None,
) -> Iterator[Tensor]:
    """Whole images, or standardised rows, in batches, in order, on the device; or a sample.

    On a CPU a batch of images that are opened one by one holds until the next one is asked for.
    """
    chosen = np.arange(len(source)) if sample is None else sample
    batches = (chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size))
    if isinstance(source, Rows):
        assert isinstance(recipe, RowRecipe)
        return (standardize(source.load(rows), recipe).to(device) for rows in batches)
    assert isinstance(recipe, ViewRecipe)
    if isinstance(source, ArrayImages):
        # where channels lie last a `view` in a user's backbone would fail; `contiguous` would leave
        # a single channel so
        loaded = (whole_images(source.load(rows).to(device), recipe) for rows in batches)
        return (images.clone(memory_format=torch.contiguous_format) for images in loaded)
    return _opened(source, recipe, batches, min(batch_size, len(chosen)), n_jobs, device)


def _opened(
    source: ItemImages,
    recipe: ViewRecipe,
    batches: Iterable[Indices],
    batch_size: int,
    n_jobs: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Whole images that threads open; further batches while an accelerator is at work."""
    ahead, size = n_ahead(source, n_jobs, device), recipe.global_size
    rooms = deque(torch.empty(batch_size, source.n_channels, size, size) for _ in range(ahead + 1))
    with reader_threads(n_jobs, aside=ahead > 0) as read:

        def begin(rows: Indices) -> Callable[[], Tensor]:
            rooms.rotate()
            room = rooms[0][: len(rows)]

            @torch.inference_mode()  # the room may have been made in it
            def open_part(part: slice) -> None:
                buffers = BufferPool()
                for into, row in zip(room[part], rows[part].tolist(), strict=True):
                    image = source.load_one(row, 2 * whole_side(recipe), buffers=buffers)
                    into.copy_(whole_images(image[None], recipe)[0])

            opened = read(open_part, parts(0, len(rows)))

            def finish() -> Tensor:
                deque(opened, maxlen=0)
                return room.to(device)

            return finish

        yield from finished(map(begin, batches), ahead)
