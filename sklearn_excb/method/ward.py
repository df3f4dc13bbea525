"""Ward's method for clusters with sizes: the exact tree, with memory for the centroids only.

Ward's method always joins the closest pair of clusters. Two clusters that are nearest to each other
end up joined whatever happens elsewhere, since a union is no nearer to other clusters than the
nearer of its parts was [1]_. The code can therefore join many pairs at a time. It finds them by
following chains of nearest neighbours, and finds neighbours by products with all centroids, block
by block.

Axes: ``K`` leaves; ``D`` dimensions; ``rows`` clusters that need their nearest neighbour; ``edges``
pairs of clusters.

References
----------
.. [1] F. Murtagh, "A survey of recent advances in hierarchical clustering algorithms", The
   Computer Journal 26(4), 1983: reducibility, and chains of nearest neighbours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Linkage = npt.NDArray[np.float64]  # (K - 1, 4), as in scipy.cluster.hierarchy
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MOST_ROWS = 1024  # most clusters per search for nearest neighbours
_FEWEST_ROWS = 8  # for fewer clusters, reading the centroids takes most of the time
_FEWEST_DISTANCES = 2**16  # for fewer distances, the overhead of a search takes most of the time
_BLOCK = 2**19  # distances per block, which stay in the cache
_DOUBLES_UP_TO = 16_384  # clusters; more are compared in single precision, in half the time
_SLOW_GRAPH = 0.01  # if a round joins a smaller share of the clusters, the graph is given up


class Merging:
    """State of the clusters during merging.

    Each cluster has a slot. A union takes the lower of the two slots of its parts, so slots stay in
    the order of their lowest leaves. ``nearest`` of a slot is -1 if it is not known. Once known, it
    is valid until that neighbour is joined to another cluster, since a union of other clusters is
    no nearer than the nearer of its parts was.
    """

    def __init__(self, points: Doubles, weights: Doubles) -> None:
        K, D = points.shape
        precision = np.float64 if K <= _DOUBLES_UP_TO else np.float32
        self.means = points - points.mean(axis=0)  # centred rows lose less to rounding
        # [c, |c|^2, 1], so that squared distances are products; |c|^2 is infinite in a free slot
        self.points = np.empty((K, D + 2), precision)
        self.points[:, :D], self.points[:, D + 1] = self.means, 1
        self.points[:, D] = np.einsum("kd,kd->k", self.means, self.means)
        self.weights = weights
        self.nodes = np.arange(K)  # node of the tree in each slot
        self.alive = np.ones(K, dtype=bool)
        self.nearest = np.full(K, -1)
        self.cost = np.full(K, np.inf)  # cost of joining the nearest, a squared distance
        self.children = np.empty((K - 1, 2), np.int64)
        self.heights = np.empty(K - 1)
        self.leaves = np.ones(2 * K - 1, np.int64)
        self.n_merges = 0

    def tree(self) -> Linkage:
        """Merge down to one cluster, and return the linkage in the order of heights."""
        n_rows, merges_before = _MOST_ROWS, 0
        while self.n_merges < len(self.heights):
            pairs = self._mutual()
            if len(pairs):
                self._merge(pairs)
                if np.count_nonzero(self.alive) < 0.9 * len(self.alive):
                    self._compact()
                continue
            unknown = self.alive & (self.nearest < 0)
            known = self.nearest[self.alive & (self.nearest >= 0)]
            ends = np.zeros_like(unknown)
            ends[known] = True
            rows = np.flatnonzero(unknown & ends)  # clusters at which chains continue
            if not len(rows):
                # When a cluster merges, all chains that lead to it are cut. The number of new
                # chains therefore follows the number of merges that the last chains led to.
                fewest = max(_FEWEST_ROWS, _FEWEST_DISTANCES // len(self.alive))
                n_rows = int(np.clip(4 * (self.n_merges - merges_before), fewest, 2 * n_rows))
                merges_before = self.n_merges
                rows = np.flatnonzero(unknown)[: min(n_rows, _MOST_ROWS)]
            self._find(rows[:_MOST_ROWS])
        return in_order(self.children, self.heights, self.leaves)

    def _mutual(self) -> Ints:
        """Return disjoint pairs of slots, (n, 2), that are nearest to each other.

        A pair also counts if the neighbour has no nearer neighbour of its own. With equal or
        rounded distances, a chain could otherwise go round in a circle.
        """
        known = np.flatnonzero(self.nearest >= 0)
        to = self.nearest[known]
        mutual = (self.nearest[to] == known) | (self.cost[known] <= self.cost[to])
        mutual &= self.nearest[to] >= 0
        known, to = known[mutual], to[mutual]
        order = np.lexsort((known, self.cost[known]))
        pairs = np.sort(np.stack([known[order], to[order]], axis=1), axis=1)
        taken: set[int] = set()
        kept = []
        for i, (a, b) in enumerate(pairs.tolist()):
            if a not in taken and b not in taken:
                taken.update((a, b))
                kept.append(i)
        return pairs[kept]

    def _merge(self, pairs: Ints) -> None:
        """Join pairs of slots."""
        a, b = pairs.T
        wa, wb = self.weights[a], self.weights[b]
        apart = self.means[a] - self.means[b]
        squared = np.einsum("nd,nd->n", apart, apart)  # from differences, which is more exact
        made = slice(self.n_merges, self.n_merges + len(pairs))
        below = np.sort(self.nodes[pairs], axis=1)
        self.children[made] = below
        K = len(self.heights) + 1
        nodes = np.arange(made.start, made.stop) + K
        self.leaves[nodes] = self.leaves[below].sum(axis=1)
        heights = np.sqrt(2 * wa * wb / (wa + wb) * squared)
        for child in below.T:  # despite rounding, heights must never fall
            merged = child >= K
            heights[merged] = np.maximum(heights[merged], self.heights[child[merged] - K])
        self.heights[made] = heights
        share = (wb / (wa + wb))[:, None]
        mean = self.means[a] - share * apart
        self.means[a] = self.points[a, :-2] = mean
        self.points[a, -2] = np.einsum("nd,nd->n", mean, mean)
        self.weights[a] = wa + wb
        self.nodes[a] = nodes
        self.alive[b] = False
        self.points[b, -2] = np.inf
        self.n_merges = made.stop
        changed = np.zeros_like(self.alive)
        changed[pairs] = True
        self.nearest[changed | ((self.nearest >= 0) & changed[self.nearest])] = -1

    def merge_along(self, edges: Ints, n_left: int) -> None:
        """Join pairs that are nearest to each other in a graph, until at most ``n_left`` remain.

        Parameters
        ----------
        edges : ndarray of shape (E, 2)
            Pairs of leaves, (i, j) with i < j. A union has the edges of its parts.
        n_left : int
            Number of clusters at the end. More are left if the graph falls into parts, or if a
            round joins so few pairs that merging without the graph is faster.
        """
        while np.count_nonzero(self.alive) > n_left and len(edges):
            self._nearest_along(edges)
            pairs = self._mutual()
            if len(pairs) < _SLOW_GRAPH * np.count_nonzero(self.alive):
                break
            pairs = pairs[: np.count_nonzero(self.alive) - n_left]  # the closest come first
            self._merge(pairs)
            joined = np.arange(len(self.alive))
            joined[pairs[:, 1]] = pairs[:, 0]
            edges = self._compact()[joined[edges]]
            edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
        self.nearest[:] = -1

    def _nearest_along(self, edges: Ints) -> None:
        """Find the nearest of each cluster among its neighbours in a graph."""
        cost = np.empty(len(edges))
        for start in range(0, len(edges), _BLOCK // 32):
            a, b = edges[start : start + _BLOCK // 32].T
            apart = self.points[a, :-2] - self.points[b, :-2]
            squared = np.einsum("nd,nd->n", apart, apart)
            cost[start : start + len(a)] = squared / (1 / self.weights[a] + 1 / self.weights[b])
        ends, others = np.concatenate([edges, edges[:, ::-1]]).T
        both = np.concatenate([cost, cost])
        order = np.lexsort((others, both, ends))
        slots, first = np.unique(ends[order], return_index=True)
        self.nearest[:], self.cost[:] = -1, np.inf
        self.nearest[slots], self.cost[slots] = others[order][first], both[order][first]

    def _compact(self) -> Ints:
        """Remove free slots, and return the new index of each slot."""
        to = np.cumsum(self.alive) - 1
        self.nearest = np.where(self.nearest >= 0, to[self.nearest], -1)
        for name in ("means", "points", "weights", "nodes", "nearest", "cost"):
            setattr(self, name, getattr(self, name)[self.alive])
        self.alive = np.ones(len(self.nodes), dtype=bool)
        return to

    def _find(self, rows: Ints) -> None:
        """Find the nearest neighbour of each cluster in ``rows``."""
        points = torch.from_numpy(self.points)
        inverse = torch.from_numpy((1 / self.weights).astype(self.points.dtype))
        chosen = torch.from_numpy(rows)
        mine = points[chosen]
        mine = torch.cat([-2 * mine[:, :-2], mine[:, -1:], mine[:, -2:-1]], dim=1)
        best = points.new_full((len(rows),), torch.inf)
        where = torch.zeros(len(rows), dtype=torch.int64)
        step = max(1, _BLOCK // len(rows))
        for start in range(0, len(points), step):
            stop = min(start + step, len(points))
            cost = mine @ points[start:stop].T  # (rows, block), squared distances
            cost /= inverse[chosen, None] + inverse[start:stop]
            itself = torch.from_numpy(np.flatnonzero((rows >= start) & (rows < stop)))
            cost[itself, chosen[itself] - start] = torch.inf
            least, at = cost.min(dim=1)
            nearer = least < best
            best[nearer], where[nearer] = least[nearer], at[nearer] + start
        self.nearest[rows], self.cost[rows] = where.numpy(), best.clamp(min=0).numpy()


def in_order(children: Ints, heights: Doubles, leaves: Ints) -> Linkage:
    """Sort merges by height into a linkage; every part must come before its union."""
    K = len(heights) + 1
    order = heights.argsort(kind="stable")
    number = np.arange(2 * K - 1)
    number[K + order] = np.arange(K, 2 * K - 1)
    pairs = np.sort(number[children[order]], axis=1)
    return np.column_stack([pairs, heights[order], leaves[K + order]]).astype(np.float64)
