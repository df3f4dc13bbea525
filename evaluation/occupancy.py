"""How evenly images spread over clusters, and the plot that shows it.

With N images and K clusters, a cluster of N_c images has the relative size N_c K / N: 1 is
balanced, 0 empty, K everything in one cluster.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation import _style
from evaluation._checks import SKIPPED, check_cluster_labels, check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Occupancy:
    """How images spread over clusters; see `cluster_occupancy`.

    Attributes
    ----------
    n_clusters : int
        K, empty clusters included.
    n_samples : int
        Images in clusters, N.
    n_ignored : int
        Images left out, because their label is -1.
    empty_fraction : float
        Share of clusters without an image, in [0, 1).
    largest_relative_size : float
        Relative size of the largest cluster, in [1, K].
    entropy : float
        Entropy of the cluster sizes over its maximum, H / log K, in [0, 1]; 1 is balanced. A
        single cluster counts as balanced.
    effective_clusters : float
        exp(H), in [1, K]: the number of equal clusters of the same entropy.
    gini : float
        Gini coefficient of the cluster sizes, in [0, 1): 0 exactly when all are equal, 1 - 1/K with
        everything in one cluster.
    counts : ndarray of shape (K,), int64
        Images in each cluster; read-only.
    """

    n_clusters: int
    n_samples: int
    n_ignored: int
    empty_fraction: float
    largest_relative_size: float
    entropy: float
    effective_clusters: float
    gini: float
    counts: NDArray[np.int64] = field(repr=False)

    @property
    def relative_sizes(self) -> NDArray[np.float64]:
        """Relative size N_c K / N of each cluster, (K,); they sum to K."""
        return self.counts.astype(np.float64) * self.n_clusters / self.n_samples


def cluster_occupancy(labels: ArrayLike, n_clusters: int) -> Occupancy:
    """Measure how evenly images spread over clusters.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Cluster ids in [0, n_clusters); -1 marks an image that was skipped.
    n_clusters : int
        K, at least 1. It cannot be told from the labels: the last clusters may be empty.

    Returns
    -------
    Occupancy

    Raises
    ------
    ValueError
        If no label is a cluster id, or one is out of range.

    Notes
    -----
    Empty fraction and largest relative size are the figures of Fig. 1 in the supplementary of ExCB
    (Metaxas, Tzimiropoulos and Patras, ECCV 2024).

    Examples
    --------
    >>> from evaluation import cluster_occupancy
    >>> occupancy = cluster_occupancy([0, 0, 0, 1, -1], n_clusters=4)
    >>> occupancy.empty_fraction, occupancy.largest_relative_size, occupancy.n_ignored
    (0.5, 3.0, 1)
    """
    n_clusters = check_count(n_clusters, "n_clusters")
    labels = check_cluster_labels(labels, "labels")
    if labels.max() >= n_clusters:
        raise ValueError(
            f"labels hold {labels.max()} with n_clusters={n_clusters}, needed ids below "
            "n_clusters. Pass the number of clusters the model has."
        )
    kept = labels[labels != SKIPPED]
    if len(kept) == 0:
        raise ValueError(
            f"All {len(labels)} labels are -1 (skipped), needed at least one cluster id."
        )
    counts = np.bincount(kept, minlength=n_clusters).astype(np.int64)
    counts.setflags(write=False)
    entropy = _entropy(counts)
    return Occupancy(
        n_clusters=n_clusters,
        n_samples=len(kept),
        n_ignored=len(labels) - len(kept),
        empty_fraction=float(np.mean(counts == 0)),
        largest_relative_size=float(counts.max() * n_clusters / len(kept)),
        entropy=min(entropy / np.log(n_clusters), 1.0) if n_clusters > 1 else 1.0,
        effective_clusters=min(float(np.exp(entropy)), float(n_clusters)),
        gini=_gini(counts),
        counts=counts,
    )


def _entropy(counts: NDArray[np.int64]) -> float:
    """H = -sum p log p over the clusters in use, in nats."""
    p = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _gini(counts: NDArray[np.int64]) -> float:
    """Gini coefficient: sum over ranks i of (2 i - K - 1) times the i-th smallest, over K N."""
    n_clusters = len(counts)
    weights = 2 * np.arange(1, n_clusters + 1) - n_clusters - 1
    # In integers, so that balanced is exactly 0.
    return float((weights * np.sort(counts)).sum() / (n_clusters * counts.sum()))


class OccupancyDisplay:
    """Relative cluster sizes in descending order, on a logarithmic scale.

    Of the kind of Fig. 1 in the supplementary of ExCB: a balanced model is a line along 1 that
    reaches the right edge; a collapsed one is steep and stops short. Where clusters are empty the
    background is shaded. Use `from_predictions` to create one.

    Parameters
    ----------
    occupancies : mapping of str to Occupancy
        The models to draw, by name. One unnamed model has the name "".

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Its figure.
    lines_ : list of matplotlib Line2D
        One line a model, in order.
    """

    def __init__(self, occupancies: Mapping[str, Occupancy]) -> None:
        self.occupancies = occupancies

    @classmethod
    def from_predictions(
        cls,
        labels: ArrayLike | Mapping[str, ArrayLike],
        n_clusters: int,
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Measure and plot the cluster sizes of one model or several.

        Parameters
        ----------
        labels : array-like of shape (n,), or mapping of str to such
            Cluster ids in [0, n_clusters), -1 for skipped images; a mapping compares models.
        n_clusters : int
            Number of clusters, the same for all.
        name : str, optional
            Name of the one model in the legend.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        OccupancyDisplay
        """
        if isinstance(labels, Mapping):
            if not labels:
                raise ValueError("labels is an empty mapping, needed at least one model.")
            if name is not None:
                raise ValueError(
                    f"name={name!r} came with a mapping, whose keys are the names: leave it out."
                )
            models = {
                str(key): cluster_occupancy(value, n_clusters) for key, value in labels.items()
            }
        else:
            models = {name or "": cluster_occupancy(labels, n_clusters)}
        return cls(models).plot(ax=ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        self : OccupancyDisplay
        """
        ax = _style.axes(ax, figsize=(7.2, 4.2))
        sizes = {
            name: np.sort(occupancy.relative_sizes)[::-1]
            for name, occupancy in self.occupancies.items()
        }
        n_clusters = max(len(each) for each in sizes.values())
        smallest = min(float(each[each > 0].min()) for each in sizes.values())
        largest = max(float(each.max()) for each in sizes.values())
        ax.set_yscale("log")
        # At least a decade on both sides of the optimum: noise about 1 must not look dramatic.
        ax.set_ylim(min(smallest / 1.8, 0.08), max(largest * 1.8, 12.0))
        ax.set_xlim(0, n_clusters)

        ax.axhline(1, color=_style.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        self.lines_ = []
        for row, (name, each) in enumerate(sizes.items()):
            color = _style.LINES[row % len(_style.LINES)]
            self.lines_.append(
                _draw_sizes(ax, each, _legend_text(name, self.occupancies[name]), color)
            )
            _draw_empty(ax, self.occupancies[name], color, row)
        _label_optimum(ax, list(sizes.values()))

        ax.set_xlabel("Clusters, largest first", color=_style.INK, fontsize=10)
        ax.set_ylabel("Relative size  $N_c K / N$", color=_style.INK, fontsize=10)
        ax.grid(axis="y", which="major", color=_style.GRID, linewidth=0.8)
        _style.quiet(ax)
        _plain_numbers(ax)
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


def _legend_text(name: str, occupancy: Occupancy) -> str:
    measured = (
        f"{_style.percent(occupancy.empty_fraction)} empty, "
        f"largest {occupancy.largest_relative_size:.1f}"
    )
    return f"{name}: {measured}" if name else measured


def _draw_sizes(ax: "Axes", sizes: NDArray[np.float64], label: str, color: str) -> Any:
    """Draw the clusters in use as steps, each one unit wide."""
    used = sizes[sizes > 0]
    edges = np.arange(len(used) + 1)
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


def _draw_empty(ax: "Axes", occupancy: Occupancy, color: str, row: int) -> None:
    """Shade the empty clusters, and write their share at the height of the model's row."""
    n_clusters, n_used = occupancy.n_clusters, int((occupancy.counts > 0).sum())
    if n_used == n_clusters:
        return
    # Gray for all: the regions of several models overlap, and mixed tints belong to none of them.
    ax.axvspan(n_used, n_clusters, facecolor=_style.MUTED, alpha=0.09, linewidth=0, zorder=0.5)
    ax.axvline(n_used, color=color, linewidth=1, alpha=0.6, zorder=1)
    wide = occupancy.empty_fraction > 0.2
    ax.annotate(
        f"{_style.percent(occupancy.empty_fraction)} empty",
        xy=(n_used, 0.95 - 0.075 * row),
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
    """Write "optimal size" on the line at 1, on the side where the curves leave room."""
    n_clusters = len(models[0])
    left = all(sizes[: max(1, n_clusters // 4)].min() > 1.6 for sizes in models)
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


def _plain_numbers(ax: "Axes") -> None:
    """Label decades as 0.1, 1, 10 rather than as powers."""
    ticker = _style.require("matplotlib.ticker", extra="eval", purpose="Plotting")
    ax.yaxis.set_major_locator(ticker.LogLocator(base=10, numticks=12))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
