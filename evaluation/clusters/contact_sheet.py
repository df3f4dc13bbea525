"""Contact sheets: images of each cluster, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _style
from .._checks import (
    SKIPPED,
    check_1d,
    check_choice,
    check_cluster_labels,
    check_count,
    check_finite,
    check_same_length,
    random_generator,
)
from ..maps.pictures import Picture, as_rgb, fit_into

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RandomState = int | np.random.RandomState | None

_MOST_ROWS = 24
_LETTER_BOX = 242
_LARGEST_CELL = 128  # pixels; a sheet of 24 rows by 12 is then 4 million pixels


class ContactSheetDisplay:
    """One row of images for each cluster.

    Use `from_predictions` to create one.

    Parameters
    ----------
    canvas : ndarray of shape (height, width, 3), uint8
        The composed sheet.
    rows : sequence of int
        Cluster id of each row, from top to bottom.
    counts : sequence of int
        Number of images in each of these clusters.
    chosen : sequence of sequence of int
        Positions in the input of the images in each row.
    n_clusters : int
        Number of clusters with at least one image, shown or not.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    image_ : matplotlib AxesImage
        The sheet on the axes.
    """

    def __init__(
        self,
        canvas: Picture,
        rows: Sequence[int],
        counts: Sequence[int],
        chosen: Sequence[Sequence[int]],
        n_clusters: int,
    ) -> None:
        self.canvas = canvas
        self.rows = rows
        self.counts = counts
        self.chosen = chosen
        self.n_clusters = n_clusters

    @classmethod
    def from_predictions(
        cls,
        images: NDArray | Sequence[Any],
        labels: ArrayLike,
        *,
        scores: ArrayLike | None = None,
        n_clusters: int | None = None,
        n_images: int = 12,
        order: Literal["size", "label"] = "size",
        random_state: RandomState = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Choose the images, compose the sheet, and plot it.

        Parameters
        ----------
        images : ndarray of shape (n, h, w) or (n, h, w, c), or sequence of n images
            Arrays are uint8, or float in [0, 1], with 1 (gray), 3 or 4 channels last; a sequence
            may mix such arrays and PIL images of any size. Only the images shown are read.
        labels : array-like of shape (n,)
            Cluster ids; -1 marks a skipped image, which is not shown.
        scores : array-like of shape (n,), optional
            How typical each image is of its cluster, such as the similarity to its centroid. The
            images with the highest scores come first. Without scores, images are drawn at random.
        n_clusters : int, optional
            Maximum number of clusters to show; 24 by default. If there are more clusters, the shown
            ones are evenly spaced in ``order``, first and last included, and the title says so.
        n_images : int, default=12
            Number of images in a row.
        order : {"size", "label"}, default="size"
            Order of the rows: largest cluster first, or ascending id.
        random_state : int, RandomState or None, default=None
            Seed of the random draw of images, used without ``scores``.
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.

        Returns
        -------
        ContactSheetDisplay

        Raises
        ------
        ValueError
            If lengths differ, all labels are -1, or an image has an invalid shape, dtype or value.
        """
        check_choice(order, "order", ("size", "label"))
        n_images = check_count(n_images, "n_images")
        n_rows = _MOST_ROWS if n_clusters is None else check_count(n_clusters, "n_clusters")
        labels = check_cluster_labels(labels, "labels")
        if len(images) != len(labels):
            raise ValueError(
                f"{len(images)} images and {len(labels)} labels, expected one label per image, "
                "in the same order."
            )
        if scores is None:
            # With random ranks, the first images of each cluster are a random draw from it.
            seed = None if random_state is None else random_generator(random_state).randint(2**31)
            ranks = np.random.default_rng(seed).random(len(labels))
        else:
            ranks = check_1d(scores, "scores").astype(np.float64)
            check_same_length(ranks, labels, "scores", "labels")
            check_finite(ranks[labels != SKIPPED, None], "scores")

        ids, sizes = np.unique(labels[labels != SKIPPED], return_counts=True)
        if len(ids) == 0:
            raise ValueError(
                f"All {len(labels)} labels are -1 (skipped), expected at least one cluster id."
            )
        if order == "size":
            by_size = np.argsort(-sizes, kind="stable")
            ids, sizes = ids[by_size], sizes[by_size]
        shown = np.linspace(0, len(ids) - 1, min(n_rows, len(ids))).round().astype(int)
        chosen = [_most_typical(labels, ranks, cluster, n_images) for cluster in ids[shown]]
        n_columns = max(map(len, chosen))
        canvas = _compose([[as_rgb(images[i], i) for i in row] for row in chosen], n_columns)
        return cls(canvas, ids[shown].tolist(), sizes[shown].tolist(), chosen, len(ids)).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.

        Returns
        -------
        self : ContactSheetDisplay
        """
        height, width = self.canvas.shape[:2]
        figure_width = 8.6
        # Of the width, .75 inches are for the labels; of the height, .35 for title and margins.
        ax = _style.axes(
            ax, figsize=(figure_width, max(1.2, (figure_width - 0.75) * height / width + 0.35))
        )
        self.image_ = ax.imshow(self.canvas, interpolation="nearest", aspect="equal")
        centers = (np.arange(len(self.rows)) + 0.5) * height / len(self.rows)
        ax.set_yticks(centers, [])
        for center, cluster, count in zip(centers, self.rows, self.counts, strict=True):
            _label_row(ax, center, cluster, count)
        ax.set_xticks([])
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        n_shown = len(self.rows)
        ax.set_title(
            f"{n_shown} of {self.n_clusters} clusters"
            if n_shown < self.n_clusters
            else f"{n_shown} cluster{'s' if n_shown > 1 else ''}",
            color=_style.INK,
            fontsize=11,
            loc="left",
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _label_row(ax: "Axes", center: float, cluster: int, count: int) -> None:
    """Write the cluster id and the number of images beside a row."""
    for text, color, size, weight, align, shift in (
        (f"{cluster}", _style.INK, 10, "bold", "bottom", -1),
        (f"{count:,} image{'s' if count > 1 else ''}", _style.MUTED, 7.5, "normal", "top", -1),
    ):
        ax.annotate(
            text,
            xy=(0, center),
            xycoords=("axes fraction", "data"),
            xytext=(-7, shift),
            textcoords="offset points",
            ha="right",
            va=align,
            color=color,
            fontsize=size,
            fontweight=weight,
            annotation_clip=False,
        )


def _most_typical(
    labels: NDArray[np.int64], ranks: NDArray[np.float64], cluster: int, n_images: int
) -> list[int]:
    """Return the positions of the images of a cluster, highest rank first."""
    members = np.flatnonzero(labels == cluster)
    return members[np.argsort(-ranks[members], kind="stable")][:n_images].tolist()


def _compose(rows: list[list[Picture]], n_images: int) -> Picture:
    """Arrange images in a grid of equal square cells, padded with light gray, with thin gaps."""
    cell = min(_LARGEST_CELL, max(max(image.shape[:2]) for row in rows for image in row))
    gap = max(1, round(cell / 16))
    pitch = cell + gap
    canvas = np.full((len(rows) * pitch, n_images * pitch, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            fitted = fit_into(image, cell)
            y, x = r * pitch + gap // 2, c * pitch + gap // 2
            canvas[y : y + cell, x : x + cell] = _LETTER_BOX
            height, width = fitted.shape[:2]
            top, left = y + (cell - height) // 2, x + (cell - width) // 2
            canvas[top : top + height, left : left + width] = fitted
    return canvas
