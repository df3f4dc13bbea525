"""Streams as the samples of a fit: an epoch is a number of steps, and images are seen once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from tqdm.auto import tqdm

from sklearn_excb.data.open_source import StreamPart, open_source, stream_parts
from sklearn_excb.data.sources import Skipped, Source
from sklearn_excb.data.unusable_images import drop_unusable, skipped_of, warn_if_nearly_black
from sklearn_excb.exceptions import ImageError, StreamEndError
from sklearn_excb.method.kmeans import most_start_rows
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.signals import deferred_signals
from sklearn_excb.settings import auto_rules
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import Model
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.settling import settling_sample
from sklearn_excb.views.batches import Batches, ViewBatches
from sklearn_excb.views.reservoir import Reservoir
from sklearn_excb.views.stream_batches import StreamBatches

_USUAL_BATCH = 256  # images per step, from which the rule of "auto" estimates an epoch's length


def stream_batch_size(parameters: Mapping[str, Any]) -> int:
    """Return the batch size of a stream; "auto" depends on the number of steps per epoch."""
    size = parameters["batch_size"]
    if isinstance(size, str):
        size = auto_rules.batch_size(int(parameters["steps_per_epoch"]) * _USUAL_BATCH)
    return int(size)


@dataclass
class Stream:
    """Iterable of images, with ``steps_per_epoch`` batches per epoch.

    Attributes
    ----------
    X : iterable
        Images. A fit iterates X again when it ends. Each rank has its own X.
    parameters : mapping
        Parameters of the estimator, with numbers for ``batch_size`` and ``n_jobs``.
    skipped : list of Skipped
        Images so far that could not be used.
    n_read : int
        Number of images so far.
    """

    X: Iterable[Any]
    parameters: Mapping[str, Any]
    skipped: list[Skipped] = field(default_factory=list)
    n_read: int = 0
    is_whole = False
    may_draw = True
    _parts: Iterator[Source] = field(init=False, repr=False)
    _n_channels: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = self.parameters["n_channels"]
        self._n_channels = None if isinstance(wanted, str) else wanted

    @property
    def n_samples(self) -> int:
        """Number of samples in an epoch."""
        return int(self.parameters["steps_per_epoch"]) * self.parameters["batch_size"]

    @contextmanager
    def open(self, context: FitContext) -> Iterator[Source]:
        """Open the first part, this rank's share of the first batch; close the stream at the end.

        Raises
        ------
        ValueError
            If the stream is empty.
        """
        mine = context.ranks.span(self.parameters["batch_size"])
        skips = self.parameters["on_error"] == "skip"
        most = int(self.parameters["steps_per_epoch"]) if skips else 0
        with context.ranks.together():
            parts = stream_parts(_repeated(self.X), max(1, mine.stop - mine.start))
            opened = _usable_parts(parts, self._open_part, most=most)
            first = next(opened)
            warn_if_nearly_black(first)
        self._parts, handed_on = _with_first(first, opened), [first]
        del first  # its images are not kept
        try:
            yield handed_on.pop()
        finally:
            self._parts = iter(())  # a thread that reads ahead may still be in the old one

    def _open_part(self, part: StreamPart) -> Source:
        """Open a part, without the images that cannot be used."""
        self.n_read += len(part)
        source = open_source(part, self._n_channels, self.parameters["on_error"])
        try:
            usable = drop_unusable(source, self.parameters["n_jobs"])
        finally:
            self.skipped.extend(skipped_of(source))
        self._n_channels = source.n_channels
        return usable

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the fingerprint of a stream, which only has its number of channels."""
        return {"kind": "a stream", "n_channels": self._n_channels}

    def batches(
        self, model: Model, views: ViewBatches, bar: tqdm[Any], *, resumes: bool
    ) -> StreamBatches:
        """Return the batches of the stream, from its first part on."""
        settings, ranks = model.settings, views.ranks
        n_start = min(self.n_samples, most_start_rows(settings.K))
        n_kept = len(settling_sample(self.n_samples, settings.K))
        return StreamBatches(
            parts=self._parts,
            recipe=model.recipe,
            n_channels=settings.n_channels,
            batch_size=settings.batch_size,
            steps_per_epoch=int(self.parameters["steps_per_epoch"]),
            n_epochs=settings.epochs,
            seed=views.seed,
            n_jobs=self.parameters["n_jobs"],
            device=views.device,
            ranks=ranks,
            n_start=-(-n_start // settings.batch_size),
            kept=Reservoir(ranks.most(n_kept), views.seed),
        )

    def refill(self, batches: Batches, settings: Settings) -> Literal["done", "stopped"]:
        """Read until the sample is full, because a resumed fit has none of the earlier images.

        Returns
        -------
        {"done", "stopped"}
            "stopped" if Ctrl-C was pressed.
        """
        assert isinstance(batches, StreamBatches)
        if not settings.settle_passes:
            return "done"
        ranks = batches.ranks
        with deferred_signals(saves=False) as signals, ranks.together(), suppress(StreamEndError):
            batches.keep_more(lambda: not signals.stop)
        return "stopped" if ranks.any(signals.stop)[0] else "done"

    def close(self, ranks: Ranks) -> None:
        """Do nothing: each rank has its own stream."""


def _repeated(X: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a stream, which is iterated again when it ends."""
    n_before = 0
    while True:
        n = 0
        for n, item in enumerate(X, 1):  # noqa: B007 - counts the items
            yield item
        if not n and not n_before:
            raise ValueError("X is empty: it contains no image.")
        if not n:
            raise StreamEndError(
                f"X ended after {n_before:,} images and yields none when it is iterated again, but "
                "the fit needs more. Pass a data set that can be iterated again, such as an "
                "IterableDataset, or lower epochs or steps_per_epoch."
            )
        n_before += n


def _with_first(first: Source, parts: Iterator[Source]) -> Iterator[Source]:
    """Yield the parts from the first on, and keep no reference to the first."""
    held = [first]
    del first
    yield held.pop()
    yield from parts


def _usable_parts(
    parts: Iterator[StreamPart], open_part: Callable[[StreamPart], Source], *, most: int
) -> Iterator[Source]:
    """Yield the opened parts; leave out up to ``most`` in a row that have no usable image."""
    n_bad = 0
    for part in parts:
        try:
            source = open_part(part)
        except ImageError:
            n_bad += 1
            if n_bad > most:
                raise
            continue
        n_bad = 0
        yield source
