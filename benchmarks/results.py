"""Tables and plots of docs/results.md, from the results of benchmarks.learning.

    python -m benchmarks.results

The script rewrites the text between each line ``<!-- table: NAME -->`` and the next
``<!-- end -->``, and leaves the rest of the page unchanged. Tables show cells without a result as
missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.cells import Cell, study
from benchmarks.data_sets import TITLES, parts_of
from benchmarks.learning import clusters_of, seconds_of
from benchmarks.stored import spread
from evaluation import OccupancyDisplay, ProjectionDisplay
from evaluation._style import INK, LINES, MUTED, quiet
from sklearn_excb.method.balancing import Below, balance

DOCS = Path(__file__).parent.parent / "docs"
PLOTTED = ("ExCB", "centering")
Result = dict[str, Any]
Measure = Callable[[Result], float]


def rows_of(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Group cells by method and changed parameters, in order, so that a row has all seeds."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        changed = ", ".join(f"{name}={value}" for name, value in cell.changed.items())
        rows.setdefault(", ".join(filter(None, [cell.method, changed])), []).append(cell)
    return rows


def _title(data: str) -> str:
    images = parts_of(data)[0]
    return data.replace(images, TITLES[images])


def rows_by_data(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the rows of several data sets, one data set after another."""
    rows = {}
    for name, of_name in groupby(cells, lambda cell: cell.data):
        rows |= {f"{_title(name)}: {row}": of_row for row, of_row in rows_of(of_name).items()}
    return rows


def table(rows: dict[str, list[Cell]], columns: dict[str, tuple[Measure, str]]) -> str:
    """Return a Markdown table with a row per method: mean ± standard deviation over the seeds.

    A dagger marks rows that were measured in another precision than the first row of the data set.
    """
    usual: dict[str, set[str]] = {}
    lines = ["| | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, cells in rows.items():
        found = [cell.result for cell in cells]
        there = [result for result in found if result is not None]
        seeds = str(len(there)) if len(there) == len(found) else f"{len(there)} of {len(found)}"
        precisions = {result["settings"]["precision"] for result in there}
        mark = " †" if there and precisions - usual.setdefault(cells[0].data, precisions) else ""
        measured = [
            spread([figure(result) for result in there], form) if there else "missing"
            for figure, form in columns.values()
        ]
        lines.append(f"| {name}{mark} | {seeds} | " + " | ".join(measured) + " |")
    return "\n".join(lines)


def share(figure: Measure) -> Measure:
    """Return a figure divided by K."""
    return lambda result: figure(result) / result["settings"]["K"]


def of_clusters(name: str) -> Measure:
    """Return a figure of the clusters of the method, or of k-means on pixels."""
    return lambda result: clusters_of(result)[name]


def of_kmeans(name: str) -> Measure:
    """Return a figure of k-means with the same K on the projections of the method, or on pixels."""
    return lambda result: result["kmeans"][name]


def unsettled(name: str, of_history: str) -> Measure:
    """Return a figure of the clusters after training, before the centroids settle."""

    def figure(result: Result) -> float:
        last = result["history"][-1] if result["history"] else {}
        found = last.get(f"{of_history}_unsettled")
        return clusters_of(result)[name] if found is None else found

    return figure


_CLUSTERS: dict[str, tuple[Measure, str]] = {
    "empty": (of_clusters("empty"), "{:.1%}"),
    "largest": (of_clusters("largest"), "{:.1f}"),
    "effective / K": (share(of_clusters("effective")), "{:.2f}"),
    "NMI": (of_clusters("nmi"), "{:.3f}"),
}
_UNSETTLED: dict[str, tuple[Measure, str]] = {
    "empty, unsettled": (unsettled("empty", "empty_fraction"), "{:.1%}"),
    "largest, unsettled": (unsettled("largest", "largest_relative_size"), "{:.1f}"),
    "effective / K, unsettled": (share(unsettled("effective", "effective_clusters")), "{:.2f}"),
}
_MINUTES: tuple[Measure, str] = (lambda result: seconds_of(result) / 60, "{:.1f}")


def at_effective(result: Result, n_effective: float, column: int) -> float:
    """Return NMI (column 1) or ACC (2) with clusters merged to ``n_effective`` effective ones."""
    curve = np.array(clusters_of(result)["merged"])
    if not curve[0, 0] <= n_effective <= curve[-1, 0]:
        return float("nan")
    return float(np.interp(n_effective, curve[:, 0], curve[:, column]))


def clusters_table(cells: Sequence[Cell]) -> str:
    """Return the table of occupancy on training and held-out images."""
    return table(
        rows_of(cells),
        {
            **{name: _CLUSTERS[name] for name in ("empty", "largest", "effective / K")},
            **_UNSETTLED,
            "empty, held out": (of_clusters("test_empty"), "{:.1%}"),
            "if equal": (of_clusters("test_empty_if_equal"), "{:.1%}"),
            "largest, held out": (of_clusters("test_largest"), "{:.1f}"),
            "effective / K of k-means": (share(of_kmeans("effective")), "{:.2f}"),
        },
    )


def quality_table(cells: Sequence[Cell]) -> str:
    """Return the table of agreement with classes, k-NN and probe."""
    rows = rows_of(cells)
    n_effective = 10.0
    return table(
        rows,
        {
            "k-NN": (lambda r: r["knn"], "{:.3f}"),
            "probe": (lambda r: r["probe"], "{:.3f}"),
            "NMI": (of_clusters("nmi"), "{:.3f}"),
            "ACC": (of_clusters("acc"), "{:.3f}"),
            "NMI at 10": (lambda r: at_effective(r, n_effective, 1), "{:.3f}"),
            "ACC at 10": (lambda r: at_effective(r, n_effective, 2), "{:.3f}"),
            "images seen": (lambda r: r["images_seen"], "{:,.0f}"),
            "minutes": _MINUTES,
        },
    )


def robustness_table(cells: Sequence[Cell]) -> str:
    """Return the table of the worst seed for each batch size and K."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        changed = cell.changed
        rows.setdefault(f"B = {changed['batch_size']}, K = {changed['K']}", []).append(cell)
    lines = ["| | seeds | empty | largest | effective / K | k-NN |", "|---|---|---|---|---|---|"]
    for name, of_row in rows.items():
        there = [cell.result for cell in of_row if cell.result is not None]
        worst = " | ".join(["missing"] * 4)
        if there:
            worst = (
                f"{max(r['empty'] for r in there):.1%} | {max(r['largest'] for r in there):.1f} | "
                f"{min(map(share(of_clusters('effective')), there)):.2f} | "
                f"{min(r['knn'] for r in there):.3f}"
            )
        lines.append(f"| {name} | {len(there)} of {len(of_row)} | {worst} |")
    return "\n".join(lines)


def comparison_table(cells: Iterable[Cell]) -> str:
    """Return the table of ExCB minus each rival, with standard errors, and of empty clusters."""
    lines = ["| | seeds | k-NN | probe | empty, ExCB : rival |", "|---|---|---|---|---|"]
    for name, of_name in groupby(cells, lambda cell: cell.data):
        rows = {
            method: [result for cell in of_row if (result := cell.result) is not None]
            for method, of_row in rows_of(of_name).items()
        }
        ours = rows.pop("ExCB")
        for rival, theirs in rows.items():
            found = ["missing"] * 3
            if len(ours) > 1 and len(theirs) > 1:
                empty = [mean(map(of_clusters("empty"), of)) for of in (ours, theirs)]
                found = [
                    *(difference(ours, theirs, of) for of in ("knn", "probe")),
                    f"{empty[0]:.1%} : {empty[1]:.1%}",
                ]
            seeds = f"{len(ours)}, {len(theirs)}"
            lines.append(f"| {_title(name)}, {rival} | {seeds} | {' | '.join(found)} |")
    return "\n".join(lines)


def difference(ours: Sequence[Result], theirs: Sequence[Result], name: str) -> str:
    """Format the difference of means and its standard error, marked if it exceeds two of them."""
    a, b = ([result[name] for result in of] for of in (ours, theirs))
    less, error = mean(a) - mean(b), (stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)) ** 0.5
    exceeds = abs(less) > 2 * error + 1e-9  # exactly two does not count, despite rounding
    verdict = "" if not exceeds else ", higher" if less > 0 else ", **lower**"
    return f"{less:+.3f} ± {error:.3f}{verdict}"


def ablation_table(cells: Sequence[Cell]) -> str:
    """Return the table of ablations, with one row per change and the defaults first."""
    return table(
        rows_of(cells),
        _CLUSTERS
        | {
            "k-NN": (lambda r: r["knn"], "{:.3f}"),
            "probe": (lambda r: r["probe"], "{:.3f}"),
        },
    )


def rows_table(cells: Iterable[Cell]) -> str:
    """Return the table of ExCB and k-means on the same vectors."""
    return table(
        rows_by_data(cells),
        _CLUSTERS | {"empty, held out": (of_clusters("test_empty"), "{:.1%}"), "minutes": _MINUTES},
    )


def settling_table(cells: Sequence[Cell]) -> str:
    """Return the table of ExCB and Sinkhorn, with and without settling."""
    chosen = []
    for name in dict.fromkeys(cell.data for cell in cells):
        chosen += [cell for cell in study(name) if cell.method in ("ExCB", "Sinkhorn")]
        chosen += [cell for cell in cells if cell.data == name]
    return table(rows_by_data(chosen), _CLUSTERS | _UNSETTLED)


def tables() -> dict[str, str]:
    """Return all tables by name."""
    found = {}
    for name in TITLES:
        cells = study(name)
        found[f"{name} clusters"] = clusters_table(cells)
        found[f"{name} quality"] = quality_table(cells)
    for name, data in (("ablations", "digits"), ("larger-network", "packed_clothing_short160")):
        defaults = (cell for cell in study(data) if cell.method == "ExCB")
        found[name] = ablation_table([*defaults, *study(name)])
    found["settling"] = settling_table(study("settling"))
    found["rows"] = rows_table(study("rows"))
    found["tuning"] = ablation_table(study("tuning"))
    found["comparison"] = comparison_table(cell for name in TITLES for cell in study(name))
    found["fresh-seeds"] = comparison_table(study("fresh-seeds"))
    found["robustness"] = robustness_table(study("robustness"))
    return found


def labels_of(result: Result) -> np.ndarray:
    """Return labels with the cluster sizes of a result."""
    return np.repeat(np.arange(len(result["counts"])), result["counts"])


def occupancy_plot(path: Path) -> None:
    """Draw Fig. 1: relative cluster sizes of ExCB and centering, with a panel per data set."""
    panels = []
    for name, title in TITLES.items():
        found = {
            cell.method: cell.result
            for cell in study(name)
            if cell.method in PLOTTED and cell.seed == 0
        }
        if len(found) == 2 and all(found.values()):
            panels.append((title, found))
    if not panels:
        return
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (title, found) in zip(axes, panels, strict=False):
        K = found["ExCB"]["settings"]["K"]
        models = {name: labels_of(result) for name, result in found.items()}
        OccupancyDisplay.from_predictions(models, K, ax=ax)
        ax.set_title(title, loc="right", color=INK, fontsize=11)
    figure.savefig(path, dpi=110)


def operator_plot(path: Path) -> None:
    """Draw Fig. 2: the balanced similarity as a function of the size of the cluster."""
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    ax = figure.subplots()
    r = np.geomspace(0.02, 50, 400)
    forms: tuple[tuple[Below, tuple[float, float]], ...] = (
        ("linear", (1, 0)),
        ("exponential", (2.5, 2)),
    )
    K = 1000
    for color, z in zip(LINES, (0.9, 0.5, 0.0, -0.5), strict=False):
        sizes = torch.from_numpy(r / K)
        for below, dashes in forms:
            rest = (1 - sizes) / (K - 1)  # the other clusters share the rest
            curve = [
                balance(
                    torch.full((1, K), z, dtype=torch.float64),
                    torch.cat([size[None], other.expand(K - 1)]),
                    below,
                )[0, 0].item()
                for size, other in zip(sizes, rest, strict=True)
            ]
            label = f"z = {z:g}" if below == "linear" else None
            ax.plot(r, curve, color=color, dashes=dashes, linewidth=1.8, label=label)
    ax.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    ax.set_xscale("log")
    ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    ax.set_xlabel("Relative size of the cluster  $s K$", color=INK)
    ax.set_ylabel("Balanced similarity  $z^B$", color=INK)
    ax.plot([], [], color=MUTED, dashes=(2.5, 2), linewidth=1.8, label="exponential")
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    quiet(ax)
    figure.savefig(path, dpi=110)


def embedding_plot(path: Path) -> None:
    """Draw Fig. 3: t-SNE of the projections of ExCB and centering, coloured by class."""
    found = {
        cell.method: cell.result
        for cell in study("digits")
        if cell.method in PLOTTED and cell.seed == 0
    }
    if not all(found.values()):
        return
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for ax, (method, result) in zip(figure.subplots(1, 2), found.items(), strict=True):
        assert result is not None
        points = np.array(result["tsne"]["coordinates"])
        classes = np.array(result["tsne"]["classes"])
        ProjectionDisplay(points, classes).plot(ax, title=method)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write tables and plots."""
    page = DOCS / "results.md"
    text = page.read_text()
    for name, content in tables().items():
        pattern = rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, n_found = re.subn(pattern, rf"\g<1>\n{content}\n\n\g<2>", text, flags=re.S)
        if n_found != 1:
            raise SystemExit(f"{page} has {n_found} markers for the table {name!r}, needed one.")
    page.write_text(text)
    occupancy_plot(DOCS / "occupancy.png")
    operator_plot(DOCS / "operator.png")
    embedding_plot(DOCS / "embedding.png")


if __name__ == "__main__":
    main()
