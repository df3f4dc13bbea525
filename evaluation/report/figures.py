"""Tables of the report: the main figures beside their baselines, and the parameters."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arrays import known_values
from .._checks import SKIPPED, missing_rows
from .._style import percent
from ..clusters.occupancy import cluster_occupancy
from ..clusters.review import ClusterReview, review_clusters
from ..clusters.scores import clustering_scores
from ..neighbors.knn import knn_accuracy

_K = 20  # neighbours for the k-NN accuracy
_MOST_QUERIES = 20_000  # rows for leave-one-out


class Model(NamedTuple):
    """A clustering to compare, with its embeddings where they are known."""

    name: str
    labels: NDArray[np.int64]
    embeddings: NDArray | None
    n_clusters: int

    @property
    def relative_sizes(self) -> NDArray[np.float64]:
        """Relative size of each cluster, (K,)."""
        return cluster_occupancy(self.labels, self.n_clusters).relative_sizes


class _Column(NamedTuple):
    head: str
    meaning: str
    write: Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:.3f}"


_COLUMNS = {
    "clusters": _Column(
        "clusters", "number of clusters K, empty clusters included", lambda v: f"{v:,}"
    ),
    "empty": _Column("empty", "share of clusters without an image", percent),
    "largest": _Column(
        "largest",
        "size of the largest cluster, divided by the mean size: 1 is balanced",
        lambda v: f"{v:.1f}",
    ),
    "effective": _Column(
        "effective clusters",
        "number of equally large clusters with the same entropy",
        lambda v: f"{v:,.1f}",
    ),
    "tightness": _Column(
        "within-cluster similarity",
        "mean cosine similarity of an image to the mean direction of its cluster",
        _plain,
    ),
    "doubt": _Column(
        "neighbour mixing",
        "share of an image's nearest neighbours that are in other clusters, mean over the images",
        percent,
    ),
    "nmi": _Column("NMI", "normalised mutual information of clusters and classes", _plain),
    "accuracy": _Column(
        "ACC",
        "share of correct images when each class is matched to one cluster; "
        "low where there are more clusters than classes",
        _plain,
    ),
    "purity": _Column(
        "purity", "share of images whose class is the most common one in their cluster", _plain
    ),
    "knn": _Column(
        f"k-NN ({_K})",
        f"share of images whose class is predicted correctly from their {_K} nearest neighbours",
        _plain,
    ),
}


def figures_table(
    models: Sequence[Model], review: ClusterReview, y: NDArray | None
) -> tuple[str, str]:
    """Return a table with a row per model and a column per figure, and a list of their meanings.

    The review belongs to the first model. A class of None is missing.
    """
    measured = [
        _measure(model, review if place == 0 else None, y) for place, model in enumerate(models)
    ]
    used = [name for name in _COLUMNS if any(name in each for each in measured)]
    head = "".join(f'<th scope="col">{escape(_COLUMNS[name].head)}</th>' for name in used)
    rows = "".join(
        f'<tr><th scope="row">{escape(model.name)}</th>'
        + "".join(_cell(each.get(name), _COLUMNS[name]) for name in used)
        + "</tr>"
        for model, each in zip(models, measured, strict=True)
    )
    meanings = "".join(
        f"<div><dt>{escape(_COLUMNS[name].head)}</dt><dd>{escape(_COLUMNS[name].meaning)}</dd></div>"
        for name in used
    )
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    return (
        f"<table class=figures>{head}<tbody>{rows}</tbody></table>",
        f"<dl class=meanings>{meanings}</dl>",
    )


def _cell(value: float | None, column: _Column) -> str:
    return "<td>-</td>" if value is None or np.isnan(value) else f"<td>{column.write(value)}</td>"


def _measure(model: Model, review: ClusterReview | None, y: NDArray | None) -> dict[str, float]:
    labels, n_clusters = model.labels, model.n_clusters
    occupancy = cluster_occupancy(labels, n_clusters)
    found = {
        "clusters": n_clusters,
        "empty": occupancy.empty_fraction,
        "largest": occupancy.largest_relative_size,
        "effective": occupancy.effective_clusters,
    }
    if review is None and model.embeddings is not None:
        review = review_clusters(model.embeddings, labels, n_clusters)
    if review is not None:
        found["tightness"] = float(np.nanmean(review.typicality))
        found["doubt"] = _mean(review.doubt)
    if y is not None and (known_values(y) & (labels != SKIPPED)).any():
        scores = clustering_scores(y, labels)
        found |= {"nmi": scores.nmi, "accuracy": scores.accuracy, "purity": scores.purity}
        if model.embeddings is not None:
            found["knn"] = _leave_one_out(model.embeddings, labels, y)
    return found


def _leave_one_out(embeddings: NDArray, labels: NDArray[np.int64], y: NDArray) -> float:
    kept = np.flatnonzero(known_values(y) & (labels != SKIPPED) & ~missing_rows(embeddings))
    if len(kept) > _MOST_QUERIES:
        kept = np.sort(np.random.default_rng(0).choice(kept, _MOST_QUERIES, replace=False))
    if len(kept) < 2:
        return float("nan")
    return knn_accuracy(embeddings[kept], y[kept], k=min(_K, len(kept) - 1))


def _mean(values: NDArray[np.float32]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def parameters_table(params: Mapping[str, Any]) -> str:
    """Return a table of parameter names and values; "" if there are none."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_value(value))}</td></tr>'
        for name, value in params.items()
    )
    return f"<table class=parameters><tbody>{rows}</tbody></table>" if rows else ""


def _value(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(_value(each) for each in value)
    return str(value)
