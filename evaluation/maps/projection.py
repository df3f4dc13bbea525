"""Projections of embeddings to few dimensions, by t-SNE or UMAP."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import scaled
from .._checks import (
    check_choice,
    check_classes,
    check_count,
    check_finite,
    check_positive,
    check_rows,
    check_same_length,
    missing_rows,
    random_generator,
)
from .._optional import importable, require
from ..probes.stratified import draw_rows
from .projection_display import ProjectionDisplay

__all__ = ["Projection", "ProjectionDisplay", "project"]

RandomState = int | np.random.RandomState | None

_ROUNDING = 1e-6  # of single precision, a few times, where the largest values are about 1
FEWEST_ROWS = 4  # with fewer rows, there are no neighbourhoods to preserve


@dataclass(frozen=True, eq=False)
class Projection:
    """Projected embeddings; see `project`.

    Attributes
    ----------
    coordinates : ndarray of shape (m, n_components), float32
        Coordinates of the projected rows. Only relative positions have a meaning: the axes have no
        unit and no direction.
    indices : ndarray of shape (m,), int64
        Projected rows of the embeddings, ascending. Rows of NaN, which mark skipped images, and
        rows outside the sample are missing.
    method : str
        Projection method, "tsne" or "umap"; "none" where the rows lie on a line.
    backend : str
        Module that computed the projection: "openTSNE", "sklearn" or "umap"; "none" for a line.
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
    """Project embeddings to few dimensions so that neighbours stay close together.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Embeddings, real numbers. Rows of NaN, which mark skipped images, are left out. At least 4
        finite rows are needed.
    method : {"tsne", "umap"}, default="tsne"
        Projection method. t-SNE uses openTSNE if it is installed, otherwise scikit-learn. UMAP uses
        umap-learn.
    n_components : {1, 2, 3}, default=2
        Number of dimensions of the result. t-SNE in three dimensions always uses scikit-learn.
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance between rows. For "cosine", rows are L2-normalised: their squared Euclidean
        distance is then 2 (1 - cosine).
    perplexity : float, default=30
        Effective number of neighbours in t-SNE, at most (m - 1) / 3 for m rows. Larger values are
        lowered.
    n_neighbors : int, default=15
        Number of neighbours in UMAP, at most m - 1. Larger values are lowered.
    max_samples : int, optional
        Maximum number of rows. More rows are sampled without replacement.
    y : array-like of shape (n,), optional
        Class or cluster labels for stratified sampling. Every class keeps at least one row if
        ``max_samples`` allows it.
    random_state : int, RandomState or None, default=None
        Seed of the sample and of the projection. With None, results differ between calls and UMAP
        uses several threads.

    Returns
    -------
    Projection

    Raises
    ------
    ValueError
        If there are too few rows, or a value is out of range.
    ImportError
        If ``method`` is "umap" and umap-learn is not installed.

    Warns
    -----
    UserWarning
        If the embeddings are all alike, and lie on a line in their order, or have a single feature,
        and lie on a line by its values.

    Notes
    -----
    t-SNE is described by van der Maaten and Hinton, JMLR 2008, and UMAP by McInnes, Healy and
    Melville, 2018.
    """
    x = check_rows(embeddings, "embeddings")
    check_choice(method, "method", ("tsne", "umap"))
    check_choice(metric, "metric", ("cosine", "euclidean"))
    n_components = check_count(n_components, "n_components")
    if n_components > 3:
        raise ValueError(f"n_components={n_components}, expected 1, 2 or 3 dimensions for a plot.")
    perplexity = check_positive(perplexity, "perplexity")
    n_neighbors = check_count(n_neighbors, "n_neighbors", minimum=2)
    groups = None
    if y is not None:
        classes, known = check_classes(y, "y")
        check_same_length(x, classes, "embeddings", "y")
        codes = np.unique(classes, return_inverse=True)[1]
        groups = np.where(known, codes, -1)  # images without a class are a group of their own
    if max_samples is not None:
        max_samples = check_count(max_samples, "max_samples", minimum=FEWEST_ROWS)
    indices = np.flatnonzero(~missing_rows(x)).astype(np.int64)
    if len(indices) < FEWEST_ROWS:
        others = " that are not NaN" if len(indices) < len(x) else ""
        raise ValueError(
            f"embeddings have {len(indices)} rows{others}, expected at least {FEWEST_ROWS} for a "
            "projection. Pass more images."
        )

    seed = _seed(random_state)
    if max_samples is not None and max_samples < len(indices):
        drawn_by = None if groups is None else groups[indices]
        generator = np.random.default_rng(seed)
        indices = indices[draw_rows(len(indices), max_samples, drawn_by, generator)]
    rows = np.asarray(x[indices], dtype=np.float64)
    check_finite(rows, "embeddings", rows=indices)
    values = _in_range(rows)
    if values.shape[1] == 1 and np.ptp(values):
        why = "The embeddings have one feature. The map shows its values on a line."
        return _line(values[:, 0], indices, n_components, why)
    rows, norms = scaled(rows) if metric == "cosine" else (values, 1)
    single = (rows / norms).astype(np.float32)
    places = np.full((len(rows), n_components), np.nan)
    backend = ""
    differ = np.ptp(single, axis=0).max() > _ROUNDING
    if differ and method == "umap":
        places, backend = _umap(single, n_components, min(n_neighbors, len(rows) - 1), seed)
    elif differ:
        perplexity = min(perplexity, (len(rows) - 1) / 3)
        places, backend = _tsne(single, n_components, perplexity, seed)
    if not np.isfinite(places).all():
        why = "The embeddings are all alike. The map shows them on a line, in row order."
        return _line(np.arange(len(rows)), indices, n_components, why)
    return Projection(np.asarray(places, np.float32), indices, method, backend)


def _in_range(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows scaled to at most 1, by a power of two, which changes no digit."""
    return np.ldexp(rows, -int(np.frexp(np.abs(rows).max())[1]))


def _line(
    along: NDArray[Any], indices: NDArray[np.int64], n_components: int, why: str
) -> Projection:
    """Return a map with the rows on a line, and warn why."""
    warnings.warn(why, UserWarning, stacklevel=3)
    coordinates = np.zeros((len(along), n_components), np.float32)
    coordinates[:, 0] = along
    return Projection(coordinates, indices, "none", "none")


def _tsne(
    rows: NDArray[np.float32], n_components: int, perplexity: float, seed: int | None
) -> tuple[Any, str]:
    if seed is None:  # with None, both libraries would use NumPy's global generator
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    # The default initialisation, PCA, has no more components than there are features.
    few = n_components > rows.shape[1]
    if n_components < 3 and importable("openTSNE"):
        from openTSNE import TSNE

        # One thread: several threads sum in varying order, so that results would differ with the
        # same seed. On a busy machine they also took longer.
        tsne = TSNE(
            n_components=n_components,
            perplexity=perplexity,  # pyright: ignore[reportArgumentType]
            random_state=seed,
            n_jobs=1,
            initialization="random" if few else "pca",
        )
        return tsne.fit(rows), "openTSNE"
    from sklearn.manifold import TSNE

    init = "random" if few else "pca"
    tsne = TSNE(n_components=n_components, perplexity=perplexity, random_state=seed, init=init)
    return tsne.fit_transform(rows), "sklearn"


def _umap(
    rows: NDArray[np.float32], n_components: int, n_neighbors: int, seed: int | None
) -> tuple[Any, str]:
    umap = require("umap", extra="eval", purpose='method="umap"')
    reducer = umap.UMAP(
        n_components=n_components,
        n_neighbors=n_neighbors,
        random_state=seed,
        # UMAP is reproducible only on one thread, and warns if it has to set this itself.
        n_jobs=-1 if seed is None else 1,
        # The spectral initialisation needs more eigenvectors than few rows have.
        init="spectral" if len(rows) > 10 * n_components else "random",
    )
    return reducer.fit_transform(rows), "umap"


def _seed(random_state: RandomState) -> int | None:
    """Return one integer seed for all random draws of a call, or None."""
    if random_state is None:
        return None
    return int(random_generator(random_state).randint(2**31 - 1))
