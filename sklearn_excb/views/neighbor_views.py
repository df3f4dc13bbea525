"""Views of rows by their neighbourhoods: averages over random walks from row to neighbour.

Rows that are near each other are mostly of one kind, and a row differs from its kind by much that
is its own. An average over its neighbourhood keeps the kind and loses the rest. A walk goes from a
row to one of its nearest neighbours, or stays where it is, a number of times. The global views of a
row are averages over the ends of such walks. The first local view is the row itself, so the student
learns to see in a row what the teacher sees in its neighbourhood.

The walks are as long as a cluster is wide: they may end at about as many rows as a cluster has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sklearn_excb.runtime.philox import uniforms
from sklearn_excb.runtime.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FloatRows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Load = Callable[[Indices], FloatRows]

N_NEIGHBORS = 10
_ONE_SIDED = 0.1  # weight of a neighbour of which the row is no neighbour; mutual ones have 1
_MOST_STEPS = 32  # of a walk
_STARTS = 64  # rows from which the reach of walks is measured
_SAMPLE, _FEWEST = 2**25, 1024  # elements, and rows, from which principal directions are computed
_BLOCK = 2**22  # elements of a block of rows
_NEIGHBOR = 1 << 33  # number of the operation that chooses a neighbour


class Coordinates(NamedTuple):
    """Rows in the coordinates of their principal directions.

    Attributes
    ----------
    rows : ndarray of shape (n, m)
        Coordinates of each row, in units of the rows' scale.
    directions : ndarray of shape (m, d)
        Orthonormal principal directions.
    """

    rows: FloatRows
    directions: FloatRows


@dataclass(frozen=True)
class NeighborViews:
    """Views of the rows of a collection by their neighbourhoods.

    Attributes
    ----------
    averages : list of ndarray (n, m)
        Averages over the walks of each global view, in principal coordinates.
    directions : ndarray of shape (m, d)
        Principal directions, times the scale of the rows.
    mean : ndarray of shape (d,)
        Mean of the rows.
    neighbors : ndarray of shape (n, k)
        Nearest neighbours of each row.
    """

    averages: list[FloatRows]
    directions: FloatRows
    mean: FloatRows
    neighbors: Indices

    def make(self, load: Load, rows: Indices, seed: int, epoch: int, view: int) -> FloatRows:
        """Make one view (B, d) of some rows, as a function of (seed, epoch, row, view).

        Global views come first. Local views are the rows themselves, and then random neighbours.
        """
        if view < len(self.averages):
            return self.averages[view][rows] @ self.directions + self.mean
        if view == len(self.averages):
            return load(rows)
        chance = uniforms(seed, epoch, rows, view, _NEIGHBOR)[:, 0]
        which = (chance * self.neighbors.shape[1]).astype(np.int64)
        return load(self.neighbors[rows, which])


def neighbor_views(
    coordinates: Coordinates,
    constant: float,
    *,
    n_clusters: int,
    n_global: int,
    mean: npt.NDArray[np.float64],
    scale: float,
    ranks: Ranks = ALONE,
) -> NeighborViews:
    """Find the neighbours of all rows, and average over walks among them.

    Parameters
    ----------
    coordinates : Coordinates
        Rows in principal coordinates.
    constant : float
        Constant feature beside the coordinates, as in the projector. Neighbours are compared by the
        cosine between rows with this feature.
    n_clusters : int
        Number of clusters K, which limits the reach of the walks.
    n_global : int
        Number of global views. The walks of each view are half as long as those of the view before.
    mean : ndarray of shape (d,)
        Mean of the rows, which is added to the views.
    scale : float
        Scale of the rows, in which the views are.
    ranks : Ranks, default=ALONE
        Ranks that share the search.
    """
    rows, directions = coordinates
    n = len(rows)
    neighbors = nearest(rows, constant, min(N_NEIGHBORS, n - 1), ranks)
    walk = transition_matrix(neighbors)
    longest = walk_length(walk, n / n_clusters)
    n_steps = [max(1, longest >> view) for view in range(n_global)]
    averages: dict[int, FloatRows] = {}
    moved = rows
    for step in range(1, longest + 1):
        moved = walk @ moved
        if step in n_steps:
            averages[step] = _as_wide_as(rows, moved)
    return NeighborViews(
        [averages[steps] for steps in n_steps],
        (directions * scale).astype(np.float32),
        mean.astype(np.float32),
        neighbors,
    )


def principal_coordinates(
    load: Load, n_rows: int, n_features: int, most: int, ranks: Ranks = ALONE
) -> Coordinates:
    """Return rows in the coordinates of at most ``most`` principal directions.

    The directions are those of evenly spaced rows: of all, or of as many as 2 ** 25 numbers hold.

    Parameters
    ----------
    load : callable
        Function from indices to centred and scaled rows (n, d), called for one block at a time.
    n_rows, n_features : int
        Numbers of rows and features.
    most : int
        Largest number of directions.
    ranks : Ranks, default=ALONE
        Ranks that use the same directions.
    """
    from sklearn.decomposition import PCA

    n_sample = min(n_rows, max(_FEWEST, _SAMPLE // n_features))
    sample = load(np.linspace(0, n_rows - 1, n_sample).round().astype(np.int64))
    with np.errstate(invalid="ignore"):  # rows may have no variance at all
        found = PCA(min(most, n_features, n_sample), random_state=0).fit(sample)
    directions = ranks.broadcast(found.components_.astype(np.float32))
    rows = np.empty((n_rows, len(directions)), np.float32)
    step = max(1, _BLOCK // n_features)
    for first in range(0, n_rows, step):
        some = np.arange(first, min(first + step, n_rows))
        rows[some] = load(some) @ directions.T
    return Coordinates(rows, directions)


def nearest(rows: FloatRows, constant: float, k: int, ranks: Ranks = ALONE) -> Indices:
    """Return the k nearest neighbours (n, k) of all rows, by the cosine with a constant feature.

    A row is no neighbour of itself, but may have neighbours that are equal to it.
    """
    from sklearn_excb.evaluation import nearest_neighbors

    n = len(rows)
    sized = np.concatenate([rows, np.full((n, 1), constant, np.float32)], axis=1)
    mine, found = ranks.span(n), np.zeros((n, k), np.int64)
    if mine.stop > mine.start:
        own = np.arange(mine.start, mine.stop)[:, None]
        _, index = nearest_neighbors(sized[mine], sized, k + 1)
        others = index != own
        others[others.all(axis=1), -1] = False  # its copies come first, and take all the places
        found[mine] = index[others].reshape(-1, k)
    return ranks.sum_array(found)


def transition_matrix(neighbors: Indices) -> csr_matrix:
    """Return the chances (n, n) with which a step of a walk goes from row to row.

    A step stays, or goes to a mutual neighbour, with equal chances. It goes to a neighbour of which
    the row is no neighbour, or the other way round, with a tenth of this chance.
    """
    from scipy.sparse import csr_matrix, diags, identity

    n, k = neighbors.shape
    ones = np.ones(n * k, np.float32)
    one_way = csr_matrix((ones, (np.repeat(np.arange(n), k), neighbors.ravel())), (n, n))
    mutual, either = one_way.minimum(one_way.T), one_way.maximum(one_way.T)
    weights = mutual + _ONE_SIDED * (either - mutual) + identity(n, np.float32)
    of_row = np.asarray(weights.sum(axis=1)).ravel()
    return csr_matrix(diags(1 / of_row) @ weights, dtype=np.float32)


def walk_length(walk: csr_matrix, most: float) -> int:
    """Return the largest number of steps, up to 32, after which walks reach at most ``most`` rows.

    The reach of walks from a row is the inverse of the chance that two of them end in one row. The
    rule takes the median over 64 evenly spaced rows. The result is at least 1.
    """
    n = walk.shape[0]
    starts = np.linspace(0, n - 1, min(n, _STARTS)).round().astype(np.int64)
    ends = np.zeros((n, len(starts)), np.float32)
    ends[starts, np.arange(len(starts))] = 1
    backwards = walk.T.tocsr()
    for step in range(_MOST_STEPS):
        ends = backwards @ ends
        if np.median(1 / np.square(ends).sum(axis=0)) > most:
            return max(1, step)
    return _MOST_STEPS


def _as_wide_as(rows: FloatRows, averages: FloatRows) -> FloatRows:
    """Centre averages and scale them to the variance of the rows, which averaging reduced."""
    centred = averages - averages.mean(axis=0, dtype=np.float64).astype(np.float32)
    wide, narrow = (float(np.square(x, dtype=np.float64).mean()) for x in (rows, centred))
    return centred * np.float32((wide / narrow) ** 0.5 if narrow > 0 else 1.0)
