"""Embeddings on a plane, by t-SNE or UMAP."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from .._checks import (
    check_1d,
    check_choice,
    check_count,
    check_finite,
    check_positive,
    check_rows,
    check_same_length,
    missing_rows,
)
from .._optional import importable, require
from ..probes.stratified import draw_rows
from .projection_display import ProjectionDisplay

__all__ = ["Projection", "ProjectionDisplay", "project"]

RandomState = int | np.random.RandomState | None

FEWEST_ROWS = 4  # below, neither method has neighbourhoods to preserve


@dataclass(frozen=True, eq=False)
class Projection:
    """Coordinates of embeddings on a plane; see `project`.

    Attributes
    ----------
    coordinates : ndarray of shape (m, n_components), float32
        Only relative positions mean something: axes have no unit and no direction.
    indices : ndarray of shape (m,), int64
        Rows of the embeddings that were used, ascending: all, but those that are NaN throughout,
        as skipped images have, and those not drawn.
    method : str
        "tsne" or "umap".
    backend : str
        Module that computed it: "openTSNE", "sklearn" or "umap".
    """

    coordinates: NDArray[np.float32]
    indices: NDArray[np.int64]
    method: str
    backend: str


def project(
    embeddings: ArrayLike,
    method: Literal["tsne", "umap"] = "tsne",
    *,
    n_components: int = 2,
    metric: Literal["cosine", "euclidean"] = "cosine",
    perplexity: float = 30.0,
    n_neighbors: int = 15,
    max_samples: int | None = None,
    y: ArrayLike | None = None,
    random_state: RandomState = None,
) -> Projection:
    """Project embeddings to few dimensions, keeping neighbours together.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Real rows. Those that are NaN throughout, as skipped images have, are left out; at least 4
        others, which are finite.
    method : {"tsne", "umap"}, default="tsne"
        t-SNE by openTSNE where it is installed, else by scikit-learn; UMAP by umap-learn.
    n_components : {1, 2, 3}, default=2
        Dimensions of the result. t-SNE in three always runs in scikit-learn.
    metric : {"cosine", "euclidean"}, default="cosine"
        For cosine, rows are L2-normalised: their squared Euclidean distance is then 2 (1 - cosine).
    perplexity : float, default=30
        Effective number of neighbours in t-SNE; lowered to (m - 1) / 3 where m rows allow no more.
    n_neighbors : int, default=15
        Neighbours in UMAP; lowered to m - 1.
    max_samples : int, optional
        Use at most this many rows, drawn without replacement.
    y : array-like of shape (n,), optional
        Classes or clusters. The draw then keeps their shares, and at least one row of each as long
        as ``max_samples`` allows.
    random_state : int, RandomState or None, default=None
        An int gives the same draw and the same projection every time. None is unpredictable, and
        lets UMAP use several threads.

    Returns
    -------
    Projection

    Raises
    ------
    ValueError
        If there are too few rows, or a value is out of range.
    ImportError
        If umap-learn is not installed and asked for.

    Notes
    -----
    t-SNE: van der Maaten and Hinton, JMLR 2008. UMAP: McInnes, Healy and Melville, 2018.
    """
    x = check_rows(embeddings, "embeddings")
    check_choice(method, "method", ("tsne", "umap"))
    check_choice(metric, "metric", ("cosine", "euclidean"))
    n_components = check_count(n_components, "n_components")
    if n_components > 3:
        raise ValueError(f"n_components={n_components}, needed 1, 2 or 3: this is for plots.")
    perplexity = check_positive(perplexity, "perplexity")
    n_neighbors = check_count(n_neighbors, "n_neighbors", minimum=2)
    if y is not None:
        y = check_1d(y, "y")
        check_same_length(x, y, "embeddings", "y")
    if max_samples is not None:
        max_samples = check_count(max_samples, "max_samples", minimum=FEWEST_ROWS)
    indices = np.flatnonzero(~missing_rows(x)).astype(np.int64)
    if len(indices) < FEWEST_ROWS:
        others = " that are not NaN" if len(indices) < len(x) else ""
        raise ValueError(
            f"embeddings have {len(indices)} rows{others}, needed at least {FEWEST_ROWS}: fewer "
            "have no neighbourhoods to preserve."
        )

    seed = _seed(random_state)
    if max_samples is not None and max_samples < len(indices):
        classes = None if y is None else y[indices]
        generator = np.random.default_rng(seed)
        indices = indices[draw_rows(len(indices), max_samples, classes, generator)]
    rows = np.asarray(x[indices], dtype=np.float64)
    check_finite(rows, "embeddings", rows=indices)
    if metric == "cosine":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1)
    if method == "umap":
        coordinates, backend = _umap(
            rows.astype(np.float32), n_components, min(n_neighbors, len(rows) - 1), seed
        )
    else:
        perplexity = min(perplexity, (len(rows) - 1) / 3)
        coordinates, backend = _tsne(rows.astype(np.float32), n_components, perplexity, seed)
    return Projection(np.asarray(coordinates, np.float32), indices, method, backend)


def _tsne(
    rows: NDArray[np.float32], n_components: int, perplexity: float, seed: int | None
) -> tuple[Any, str]:
    if seed is None:  # given None, both would draw from NumPy's global generator
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    if n_components < 3 and importable("openTSNE"):
        from openTSNE import TSNE

        # One thread: several add up in any order, so that one seed draws several pictures, and on
        # a busy machine they took longer.
        tsne = TSNE(
            n_components=n_components,
            perplexity=perplexity,  # pyright: ignore[reportArgumentType]
            random_state=seed,
            n_jobs=1,
        )
        return tsne.fit(rows), "openTSNE"
    from sklearn.manifold import TSNE

    tsne = TSNE(n_components=n_components, perplexity=perplexity, random_state=seed)
    return tsne.fit_transform(rows), "sklearn"


def _umap(
    rows: NDArray[np.float32], n_components: int, n_neighbors: int, seed: int | None
) -> tuple[Any, str]:
    umap = require("umap", extra="eval", purpose='method="umap"')
    reducer = umap.UMAP(
        n_components=n_components,
        n_neighbors=n_neighbors,
        random_state=seed,
        # UMAP is reproducible on one thread only, and warns when it has to say so itself.
        n_jobs=-1 if seed is None else 1,
        # The spectral start solves for eigenvectors that a handful of rows does not have.
        init="spectral" if len(rows) > 10 * n_components else "random",
    )
    return reducer.fit_transform(rows), "umap"


def _seed(random_state: RandomState) -> int | None:
    """One integer for every draw of a call, or None."""
    if random_state is None:
        return None
    return int(check_random_state(random_state).randint(2**31 - 1))
