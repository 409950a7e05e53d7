"""Many centroids in two levels, because comparing every row with each of them takes too long.

Of k centroids, neighbouring ones are in one of about √k cells. A row is compared with the center of
every cell, then with the centroids of the nearest cells only: some 33 √k products instead of k. The
nearest centroid of all may be in another cell; then the row gets one that is little farther.
benchmarks/two_levels.py measures how often, and what it costs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curate.distances import iterate_nearest, normalize_rows

MIN_CENTROIDS = 50_000  # from so many on there are two levels
NUM_PROBES = 32  # cells whose centroids a row is compared with
_CELL_ITERATIONS = 8
_TILE_ROWS = 1 << 13


@dataclass(frozen=True)
class CentroidCells:
    """Centroids by cells. They follow from the centroids alone, so nothing of them is stored.

    `centers` float32 [m, d]; `centroids` float32 [k, d], cell after cell, cell i from `starts[i]`
    to `starts[i + 1]`; `ids` int32 [k] are their numbers.
    """

    centers: np.ndarray
    centroids: np.ndarray
    ids: np.ndarray
    starts: np.ndarray
    distance: str

    @classmethod
    def build(cls, centroids: np.ndarray, distance: str) -> "CentroidCells":
        """By k-means of the centroids: Lloyd's iterations from evenly spaced ones."""
        num_cells = count_cells(len(centroids))
        centers = centroids[np.linspace(0, len(centroids) - 1, num_cells).astype(np.int64)]
        for _ in range(_CELL_ITERATIONS):
            order, starts = _sort_by_cell(centroids, centers, distance)
            is_used = starts[1:] > starts[:-1]
            sums = np.add.reduceat(centroids[order], starts[:-1][is_used], dtype=np.float64)
            means = centers.copy()
            means[is_used] = sums / np.diff(starts)[is_used, None]
            centers = normalize_rows(means, distance)
        order, starts = _sort_by_cell(centroids, centers, distance)
        return cls(centers, centroids[order], order.astype(np.int32), starts, distance)

    def iterate_nearest(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tiles of normalized rows, float32 [t, d], and a near centroid of each row, int32 [t]."""
        half_norms = _half_norms(self.centroids, self.distance)
        for start in range(0, len(rows), _TILE_ROWS):
            tile = rows[start : start + _TILE_ROWS]
            yield tile, self._find_nearest(tile, half_norms)

    def _find_nearest(self, rows: np.ndarray, half_norms: np.ndarray) -> np.ndarray:
        num_probes = min(NUM_PROBES, len(self.centers))
        cell_products = rows @ self.centers.T - _half_norms(self.centers, self.distance)
        cells = np.argpartition(cell_products, -num_probes, axis=1)[:, -num_probes:].ravel()
        order = np.argsort(cells, kind="stable")
        bounds = np.searchsorted(cells[order], np.arange(len(self.centers) + 1))
        largest = np.full(len(rows), -np.inf, np.float32)
        positions = np.zeros(len(rows), np.int64)
        for cell in np.flatnonzero((np.diff(bounds) > 0) & (np.diff(self.starts) > 0)):
            near_rows = order[bounds[cell] : bounds[cell + 1]] // num_probes
            first, last = self.starts[cell : cell + 2]
            products = rows[near_rows] @ self.centroids[first:last].T - half_norms[first:last]
            nearest = products.argmax(axis=1)
            products = products[np.arange(len(nearest)), nearest]
            is_nearer = products > largest[near_rows]
            largest[near_rows[is_nearer]] = products[is_nearer]
            positions[near_rows[is_nearer]] = first + nearest[is_nearer]
        return np.asarray(self.ids[positions])


def count_cells(k: int) -> int:
    """How many cells k centroids have: about √k."""
    return max(round(math.sqrt(k)), 1)


def divide_centroids(num_rows: np.ndarray, k: int) -> np.ndarray:
    """How many of k centroids are fitted in each cell, by its rows: int [m] -> int64 [m].

    In proportion, and never more than it has rows. There are at least k rows.
    """
    shares = num_rows * (k / num_rows.sum())
    counts = np.minimum(np.floor(shares).astype(np.int64), num_rows)
    counts = np.maximum(counts, np.minimum(num_rows, 1))
    order = np.argsort(counts - shares, kind="stable")  # those that are due most come first
    while difference := k - int(counts.sum()):
        has_room = counts < num_rows if difference > 0 else counts > 1
        changed = order[has_room[order]] if difference > 0 else order[::-1][has_room[order[::-1]]]
        counts[changed[: abs(difference)]] += 1 if difference > 0 else -1
    return np.asarray(counts)


def _sort_by_cell(
    rows: np.ndarray, centers: np.ndarray, distance: str
) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows by their nearest center, int64 [n], and where each begins [m + 1]."""
    cells = np.concatenate([cells for _, cells in iterate_nearest(rows, centers, distance)])
    order = np.argsort(cells, kind="stable")
    return order, np.searchsorted(cells[order], np.arange(len(centers) + 1))


def _half_norms(centroids: np.ndarray, distance: str) -> np.ndarray:
    """‖c‖²/2, which x·c is less by for the nearest; cosine's centroids have one length: [k]."""
    if distance == "cosine":
        return np.zeros(len(centroids), np.float32)
    return np.asarray(0.5 * np.square(centroids).sum(axis=1), np.float32)
