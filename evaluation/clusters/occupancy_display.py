"""Plot of relative cluster sizes, for one model or several."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _style
from .occupancy import Occupancy, cluster_occupancy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class OccupancyDisplay:
    """Plot of relative cluster sizes in descending order, on a logarithmic scale.

    The plot follows Fig. 1 in the supplementary material of ExCB. A balanced model is a line at 1
    that reaches the right edge; a collapsed model is a steep line that ends early. The background
    is shaded where clusters are empty. If the models have different numbers of clusters, the
    horizontal axis shows the share of the clusters. Use `from_predictions` or `from_occupancies` to
    create a display.

    Parameters
    ----------
    occupancies : mapping of str to Occupancy
        Occupancies to draw, by the name of the model. A single unnamed model has the name "".

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    lines_ : list of matplotlib Line2D
        One line per model, in order.
    """

    def __init__(self, occupancies: Mapping[str, Occupancy]) -> None:
        self.occupancies = occupancies

    @classmethod
    def from_predictions(
        cls,
        labels: ArrayLike | Mapping[str, ArrayLike],
        n_clusters: int | Mapping[str, int],
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Measure and plot the cluster sizes of one model or several.

        Parameters
        ----------
        labels : array-like of shape (n,), or mapping of str to array-like
            Cluster ids in [0, n_clusters), -1 for skipped images; a mapping compares models.
        n_clusters : int, or mapping of str to int
            Number of clusters, one for all models or one per model.
        name : str, optional
            Name of a single model in the legend.
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.

        Returns
        -------
        OccupancyDisplay

        Raises
        ------
        ValueError
            If there is no model, a label is out of range, or the names of the two mappings differ.
        """
        if not isinstance(labels, Mapping):
            if isinstance(n_clusters, Mapping):
                raise ValueError(
                    "n_clusters came as a mapping with the labels of one model. Pass n_clusters as "
                    "an integer, or labels as a mapping, too."
                )
            return cls({name or "": cluster_occupancy(labels, n_clusters)}).plot(ax=ax)
        if not labels:
            raise ValueError("labels is an empty mapping, expected at least one model.")
        if name is not None:
            raise ValueError(
                f"name={name!r} was given with a mapping, whose keys are the names. Omit name."
            )
        if not isinstance(n_clusters, Mapping):
            n_clusters = dict.fromkeys(labels, n_clusters)
        if set(n_clusters) != set(labels):
            raise ValueError(
                f"labels are of {sorted(map(str, labels))} and n_clusters of "
                f"{sorted(map(str, n_clusters))}, expected the same models in both."
            )
        models = {
            str(key): cluster_occupancy(value, n_clusters[key]) for key, value in labels.items()
        }
        return cls(models).plot(ax=ax)

    @classmethod
    def from_occupancies(
        cls,
        occupancies: Occupancy | Mapping[str, Occupancy],
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Plot the results of `cluster_occupancy` for one model or several.

        Parameters
        ----------
        occupancies : Occupancy, or mapping of str to Occupancy
            Occupancy of a model; a mapping compares models, whose numbers of clusters may differ.
        name : str, optional
            Name of a single model in the legend.
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.

        Returns
        -------
        OccupancyDisplay

        Raises
        ------
        ValueError
            If there is no model, or a value is not an `Occupancy`.
        """
        if not isinstance(occupancies, Mapping):
            occupancies = {name or "": occupancies}
        elif name is not None:
            raise ValueError(
                f"name={name!r} was given with a mapping, whose keys are the names. Omit name."
            )
        if not occupancies:
            raise ValueError("occupancies is an empty mapping, expected at least one model.")
        for key, value in occupancies.items():
            if not isinstance(value, Occupancy):
                raise ValueError(
                    f"occupancies hold {type(value).__name__} for {str(key)!r}, expected an "
                    "Occupancy as cluster_occupancy returns it. For labels, use from_predictions."
                )
        return cls({str(key): value for key, value in occupancies.items()}).plot(ax=ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw on; those of a new figure by default.

        Returns
        -------
        self : OccupancyDisplay
        """
        ax = _style.axes(ax, figsize=(7.2, 4.2))
        sizes = {
            name: np.sort(occupancy.relative_sizes)[::-1]
            for name, occupancy in self.occupancies.items()
        }
        numbers = {len(each) for each in sizes.values()}
        shared = len(numbers) == 1  # otherwise the clusters of each model take the whole width
        smallest = min(float(each[each > 0].min()) for each in sizes.values())
        largest = max(float(each.max()) for each in sizes.values())
        ax.set_yscale("log")
        # At least about a decade on both sides of 1, so that small deviations look small.
        ax.set_ylim(min(smallest / 1.8, 0.08), max(largest * 1.8, 12.0))
        ax.set_xlim(0, max(numbers) if shared else 1)

        ax.axhline(1, color=_style.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        self.lines_ = []
        for row, (name, each) in enumerate(sizes.items()):
            color = _style.LINES[row % len(_style.LINES)]
            width = 1.0 if shared else 1 / len(each)
            legend = _legend_text(name, self.occupancies[name], tell_number=not shared)
            self.lines_.append(_draw_sizes(ax, each, width, legend, color))
            _draw_empty(ax, self.occupancies[name], width, color, row)
        _label_optimum(ax, list(sizes.values()))

        ax.set_xlabel(
            "Clusters, largest first" if shared else "Share of the clusters, largest first",
            color=_style.INK,
            fontsize=10,
        )
        ax.set_ylabel("Relative size  $N_c K / N$", color=_style.INK, fontsize=10)
        ax.grid(axis="y", which="major", color=_style.GRID, linewidth=0.8)
        _style.quiet(ax)
        _plain_numbers(ax, shares=not shared)
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.01),
            borderaxespad=0,
            borderpad=0.2,
            frameon=False,
            fontsize=9.5,
            labelcolor=_style.INK,
            handlelength=1.4,
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _legend_text(name: str, occupancy: Occupancy, *, tell_number: bool) -> str:
    number = f"K = {occupancy.n_clusters:,}, " if tell_number else ""
    measured = (
        f"{number}{_style.percent(occupancy.empty_fraction)} empty, "
        f"largest {occupancy.largest_relative_size:.1f}"
    )
    return f"{name}: {measured}" if name else measured


def _draw_sizes(
    ax: "Axes", sizes: NDArray[np.float64], width: float, label: str, color: str
) -> Any:
    """Draw the nonempty clusters as steps, each ``width`` wide."""
    used = sizes[sizes > 0]
    edges = np.arange(len(used) + 1) * width
    (line,) = ax.plot(
        edges,
        np.append(used, used[-1]),
        drawstyle="steps-post",
        color=color,
        linewidth=2.2,
        solid_capstyle="butt",
        solid_joinstyle="round",
        label=label,
        zorder=3,
    )
    return line


def _draw_empty(ax: "Axes", occupancy: Occupancy, width: float, color: str, row: int) -> None:
    """Shade the empty clusters and write their share at the height for this model."""
    n_clusters, n_used = occupancy.n_clusters, int((occupancy.counts > 0).sum())
    if n_used == n_clusters:
        return
    start, end = n_used * width, n_clusters * width
    # Gray for all models: their regions overlap, and mixed tints would match no model.
    ax.axvspan(start, end, facecolor=_style.MUTED, alpha=0.09, linewidth=0, zorder=0.5)
    ax.axvline(start, color=color, linewidth=1, alpha=0.6, zorder=1)
    wide = occupancy.empty_fraction > 0.2
    ax.annotate(
        f"{_style.percent(occupancy.empty_fraction)} empty",
        xy=(start, 0.95 - 0.075 * row),
        xycoords=("data", "axes fraction"),
        xytext=(5 if wide else -5, 0),
        textcoords="offset points",
        ha="left" if wide else "right",
        va="top",
        color=color,
        fontsize=9.5,
        fontweight="bold",
        path_effects=_style.halo(),
        zorder=4,
    )


def _label_optimum(ax: "Axes", models: list[NDArray[np.float64]]) -> None:
    """Write "optimal size" on the line at 1, on the side where the curves leave space."""
    left = all(sizes[: max(1, len(sizes) // 4)].min() > 1.6 for sizes in models)
    ax.annotate(
        "optimal size 1",
        xy=(0.0 if left else 1.0, 1),
        xycoords=("axes fraction", "data"),
        xytext=(6 if left else -6, -4 if left else 4),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top" if left else "bottom",
        color=_style.MUTED,
        fontsize=9,
        path_effects=_style.halo(),
        zorder=4,
    )


def _plain_numbers(ax: "Axes", *, shares: bool) -> None:
    """Label sizes as 0.1, 1, 10 instead of powers, and clusters by number or as percentages."""
    ticker = _style.require("matplotlib.ticker", extra="eval", purpose="Plotting")
    ax.yaxis.set_major_locator(ticker.LogLocator(base=10, numticks=12))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=not shares))
    ax.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda share, _: f"{100 * share:g} %")
        if shares
        else ticker.StrMethodFormatter("{x:,.0f}")
    )
