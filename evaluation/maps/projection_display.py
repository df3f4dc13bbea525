"""Scatter plot of projected embeddings, coloured by label."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _style
from .._checks import check_1d, check_choice, check_count, check_finite, check_rows
from . import thumbnails
from .pictures import as_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMED = len(_style.CLASSES)


class _HasCoordinates(Protocol):
    """The attributes of a `Projection` that this module uses."""

    @property
    def coordinates(self) -> NDArray[np.float32]: ...
    @property
    def indices(self) -> NDArray[np.int64]: ...


class ProjectionDisplay:
    """Scatter plot of projected embeddings, coloured by label.

    Up to 20 labels have distinct colours and are written on the map. More labels take colours from
    a colour wheel, in an order that separates neighbouring ids, and are not written. Images with
    the label -1 are gray. Use `from_predictions` to create a display.

    Parameters
    ----------
    coordinates : ndarray of shape (m, 2)
        Coordinates of the points.
    labels : ndarray of shape (m,)
        Label of each point.
    images : ndarray or sequence of images, optional
        Images, some of which are shown on the map.
    image_rows : ndarray of shape (m,), optional
        Position in ``images`` of the image of each point; the position of the point by default.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    scatter_ : matplotlib PathCollection
        Points of the plot.
    texts_ : list of matplotlib Text
        Labels written on the points.
    thumbnails_ : list of matplotlib AxesImage
        Images on the map.
    thumbnail_indices_ : ndarray of shape (t,), int
        Points whose images are shown.
    """

    def __init__(
        self,
        coordinates: NDArray,
        labels: NDArray,
        images: NDArray | Sequence[Any] | None = None,
        image_rows: NDArray[np.int64] | None = None,
    ) -> None:
        self.coordinates = coordinates
        self.labels = labels
        self.images = images
        self.image_rows = image_rows

    @classmethod
    def from_predictions(
        cls,
        coordinates: "ArrayLike | _HasCoordinates",
        labels: ArrayLike,
        *,
        images: NDArray | Sequence[Any] | None = None,
        n_thumbnails: int = 150,
        names: str = "auto",
        title: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Plot projected embeddings.

        Parameters
        ----------
        coordinates : Projection or array-like of shape (m, 2)
            Result of `project`, or other coordinates.
        labels : array-like of shape (m,) or (n,)
            Class or cluster labels, integers or strings. With a `Projection`, one per point or one
            per row of the projected embeddings.
        images : ndarray of shape (m, h, w) or (m, h, w, c), or sequence of m images, optional
            Images to show on the map. With a `Projection`, one per point or one per row of the
            projected embeddings. Arrays are uint8, or float in [0, 1], with 1 (gray), 3 or 4
            channels last; a sequence may mix such arrays and PIL images of any size. Only the
            images shown are read.
        n_thumbnails : int, default=150
            Maximum number of images on the map. The map is divided into square cells. Each cell
            with a point shows the image nearest to its centre, framed in the colour of its label.
        names : {"auto", "points", "legend", "none"}, default="auto"
            Where to write labels: "points" writes each label at the median of its points, "legend"
            in a legend, "none" nowhere. "auto" is "points" for up to 20 labels, otherwise "none".
        title : str, optional
            Title of the axes.
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.

        Returns
        -------
        ProjectionDisplay

        Raises
        ------
        ValueError
            If the numbers of labels, images and points differ, the points do not have two finite
            coordinates, or an image has an invalid shape, dtype or value.
        """
        labels = check_1d(labels, "labels")
        n_thumbnails = check_count(n_thumbnails, "n_thumbnails")
        indices = getattr(coordinates, "indices", None)
        given: Any = getattr(coordinates, "coordinates", coordinates)
        points = check_rows(given, "coordinates")
        if points.shape[1] != 2:
            raise ValueError(
                f"coordinates have {points.shape[1]} columns, expected 2. To plot embeddings, use "
                "project(embeddings) first."
            )
        check_finite(points, "coordinates")
        labels = labels[_rows(len(labels), len(points), indices, "labels")]
        image_rows = None
        if images is not None:
            image_rows = _rows(len(images), len(points), indices, "images")
        return cls(points, labels, images, image_rows).plot(
            ax, n_thumbnails=n_thumbnails, names=names, title=title
        )

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        n_thumbnails: int = 150,
        names: str = "auto",
        title: str | None = None,
    ) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.
        n_thumbnails : int, default=150
            Maximum number of images on the map; see `from_predictions`.
        names : {"auto", "points", "legend", "none"}, default="auto"
            Where to write labels; see `from_predictions`.
        title : str, optional
            Title of the axes.

        Returns
        -------
        self : ProjectionDisplay
        """
        check_choice(names, "names", ("auto", "points", "legend", "none"))
        ax = _style.axes(ax, figsize=(6.4, 6.4))
        distinct, codes = np.unique(self.labels, return_inverse=True)
        colors = _colors(distinct)
        if names == "auto":
            names = "points" if len(distinct) <= _MOST_NAMED else "none"

        # Shuffled with a fixed seed, so that the last class drawn does not hide the others.
        order = np.random.default_rng(0).permutation(len(codes))
        self.scatter_ = ax.scatter(
            *self.coordinates[order].T,
            s=_point_area(len(codes)),
            c=colors[codes[order]],
            alpha=0.85 if len(codes) < 20_000 else 0.6,
            linewidths=0,
            rasterized=len(codes) > 5_000,
        )
        self._draw_thumbnails(ax, colors[codes], check_count(n_thumbnails, "n_thumbnails"))
        self.texts_ = self._write_names(ax, distinct, codes, colors) if names == "points" else []
        if names == "legend":
            _add_legend(ax, distinct, colors)
        if title is not None:
            ax.set_title(title, color=_style.INK, fontsize=11, loc="left")
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.04)
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_thumbnails(self, ax: "Axes", colors: NDArray, n_thumbnails: int) -> None:
        """Draw one image per cell of the map, framed in the colour of its point, (m, 4)."""
        self.thumbnails_, self.thumbnail_indices_ = [], np.empty(0, np.intp)
        images = self.images
        if images is None:
            return
        rows = np.arange(len(self.coordinates)) if self.image_rows is None else self.image_rows
        chosen, centers, side = thumbnails.choose(self.coordinates, n_thumbnails)
        self.thumbnails_ = thumbnails.draw(
            ax,
            lambda i: as_rgb(images[int(rows[i])], int(rows[i])),
            chosen,
            centers,
            side,
            colors[chosen],
        )
        self.thumbnail_indices_ = chosen
        # Each image has changed the limits of the axes.
        reach = np.stack([centers - side / 2, centers + side / 2])
        ax.dataLim.update_from_data_xy(np.concatenate([reach.reshape(-1, 2), self.coordinates]))
        ax.autoscale(True)

    def _write_names(
        self, ax: "Axes", distinct: NDArray, codes: NDArray[np.intp], colors: NDArray
    ) -> list[Any]:
        """Write each label on the point nearest to the median of its points."""
        texts = []
        for code, label in enumerate(distinct):
            points = self.coordinates[codes == code]
            # The median of a ring or of two islands is outside of them: move to the nearest point.
            median = np.median(points, axis=0)
            x, y = points[np.argmin(((points - median) ** 2).sum(axis=1))]
            texts.append(
                ax.text(
                    x,
                    y,
                    str(label),
                    color=colors[code] * [0.62, 0.62, 0.62, 1.0],
                    fontsize=13,
                    fontweight="bold",
                    ha="center",
                    va="center",
                    path_effects=_style.halo(3.5),
                    zorder=5,
                )
            )
        return texts


def _rows(n: int, n_points: int, indices: NDArray | None, name: str) -> NDArray[np.int64]:
    """Return which of ``n`` labels or images belongs to each point."""
    if n == n_points:
        return np.arange(n_points)
    if indices is not None and n > indices.max():
        return indices
    raise ValueError(
        f"{n} {name} for {n_points} points, expected one each. If the projection used only some of "
        f"the rows, pass {name}[projection.indices]."
    )


def _colors(distinct: NDArray) -> NDArray[np.float64]:
    """Return an RGBA colour for each distinct label, (n_labels, 4)."""
    mpl = _style.require("matplotlib", extra="eval", purpose="Plotting")
    skipped = distinct == -1 if distinct.dtype.kind in "if" else np.zeros(len(distinct), bool)
    n = int((~skipped).sum())
    if n <= _MOST_NAMED:
        chosen = mpl.colors.to_rgba_array(_style.CLASSES[:n])
    else:
        # Steps of the golden ratio around the colour wheel separate neighbouring ids.
        wheel = (np.arange(n) * 0.6180339887) % 1
        lightness = np.array([0.72, 0.9, 0.55])[np.arange(n) % 3]
        hsv = np.stack([wheel, np.full(n, 0.72), lightness], axis=1)
        chosen = mpl.colors.to_rgba_array(mpl.colors.hsv_to_rgb(hsv))
    colors = np.empty((len(distinct), 4))
    colors[skipped] = mpl.colors.to_rgba("#c9cfd4")
    colors[~skipped] = chosen
    return colors


def _point_area(n: int) -> float:
    """Return the marker area in points squared, such that the total ink hardly depends on n."""
    return float(np.clip(22_000 / n, 1.5, 60))


def _add_legend(ax: "Axes", distinct: NDArray, colors: NDArray) -> None:
    lines = _style.require("matplotlib.lines", extra="eval", purpose="Plotting")
    handles = [
        lines.Line2D([], [], linestyle="", marker="o", markersize=6, color=color, label=str(label))
        for label, color in zip(distinct, colors, strict=True)
    ]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=1 + len(handles) // 26,
        frameon=False,
        fontsize=9,
        labelcolor=_style.INK,
        handletextpad=0.2,
        borderaxespad=0,
    )
