"""Facility location: every sample similar to one that is kept.

Wei et al. 2015, "Submodularity in data subset selection and active learning"; the lazy greedy is
Minoux 1978. Within 1 − 1/e of the best (Nemhauser et al. 1978).
"""

import functools
import heapq
from collections.abc import Callable

import numpy as np

from curate.distances import l2_normalize
from curate.random_hash import random_bits
from curate.strategies import Neighbours, order_priorities, strategy

EXACT_SAMPLES = 10_000  # up to so many, all similarities count
_TILE_VALUES = 1 << 23
_GATHERED_VALUES = 1 << 24
_CACHED_VALUES = 1 << 26
_DIGITS = 5  # after the point, of gains that count as equal

# Rows whose similarity a candidate raises, or None for all, and its similarity with these.
_Column = Callable[[int], tuple[np.ndarray | slice, np.ndarray]]


@strategy
def facility_location(
    vectors: np.ndarray,
    find_neighbours: Callable[[int], Neighbours],
    sample_ids: np.ndarray,
    seed: int,
    num_kept: int,
    num_neighbours: int = 32,
) -> np.ndarray:
    """Always the sample that most raises Σ_i max_j S_ij over the kept j: [n, d] -> [n].

    S is the squared correlation of two vectors, (1 − correlation distance)². Up to 10,000 samples
    all pairs count, and S is computed by column, of which the last 256 MiB are kept; beyond, those
    of each sample with its nearest neighbours, in lists of n · num_neighbours.
    """
    if len(vectors) <= EXACT_SAMPLES:
        rows = _center(vectors)
        gains = _sum_columns(rows)
        read_column = _dense_columns(rows)
    else:
        read_column, gains = _sparse_columns(vectors, find_neighbours(num_neighbours))
    order = _greedy(read_column, gains, random_bits(sample_ids, seed), num_kept)
    return order_priorities(order, len(vectors))


def _greedy(
    read_column: _Column, gains: np.ndarray, tiebreak: np.ndarray, num_kept: int
) -> list[int]:
    """The samples in the order in which they are taken; `gains` are those of the first, [n]."""
    best = np.zeros(len(gains), np.float32)
    # Gains only fall, so a gain that is computed anew and is still the largest is right. Two that
    # are nearest to each other often gain the same, but for rounding.
    pairs = zip(np.round(gains, _DIGITS).tolist(), tiebreak.tolist(), strict=True)
    heap = [(-gain, bits, row) for row, (gain, bits) in enumerate(pairs)]
    heapq.heapify(heap)
    order: list[int] = []
    while len(order) < num_kept:
        _, bits, row = heapq.heappop(heap)
        affected, similarities = read_column(row)
        gain = float(np.maximum(similarities - best[affected], 0).sum(dtype=np.float64))
        key = (-round(gain, _DIGITS), bits, row)
        if heap and key > heap[0]:
            heapq.heappush(heap, key)
            continue
        order.append(row)
        best[affected] = np.maximum(best[affected], similarities)
    return order


def _center(rows: np.ndarray) -> np.ndarray:
    """Rows whose products are correlations: less their own mean, and of length 1."""
    return l2_normalize(rows - rows.mean(axis=1, keepdims=True))


def _sum_columns(rows: np.ndarray) -> np.ndarray:
    """Σ_i S_ij for each j: [n, d] -> float64 [n], in tiles."""
    sums = np.empty(len(rows))
    step = max(_TILE_VALUES // len(rows), 1)
    for start in range(0, len(rows), step):
        products = rows @ rows[start : start + step].T
        sums[start : start + step] = np.square(products).sum(axis=0, dtype=np.float64)
    return sums


def _dense_columns(rows: np.ndarray) -> _Column:
    """The columns of S. Those of the candidates that come next are asked for again and again."""

    @functools.lru_cache(maxsize=_CACHED_VALUES // len(rows))
    def read_column(row: int) -> tuple[slice, np.ndarray]:
        return slice(None), np.square(rows @ rows[row])

    return read_column


def _sparse_columns(vectors: np.ndarray, neighbours: Neighbours) -> tuple[_Column, np.ndarray]:
    """The columns of S where only neighbours count, and their sums."""
    from scipy.sparse import csr_array

    num_samples, width = neighbours.indices.shape
    values = np.empty((num_samples, width + 1), np.float32)
    values[:, -1] = 1  # with itself
    step = max(_GATHERED_VALUES // (width * vectors.shape[1]), 1)
    for start in range(0, num_samples, step):
        block = slice(start, start + step)
        indices = neighbours.indices[block]
        near = _center(vectors[indices.reshape(-1)]).reshape(*indices.shape, -1)
        values[block, :-1] = np.square(np.einsum("nd,nkd->nk", _center(vectors[block]), near))
    own_indices = np.arange(num_samples, dtype=np.int32)[:, None]
    indices = np.concatenate([neighbours.indices, own_indices], axis=1)
    starts = np.arange(num_samples + 1, dtype=np.int64) * (width + 1)
    shape = (num_samples, num_samples)
    columns = csr_array((values.reshape(-1), indices.reshape(-1), starts), shape).tocsc()
    bounds = columns.indptr

    def read_column(row: int) -> tuple[np.ndarray, np.ndarray]:
        entries = slice(bounds[row], bounds[row + 1])
        return columns.indices[entries], columns.data[entries]

    return read_column, np.asarray(columns.sum(axis=0), np.float64)
