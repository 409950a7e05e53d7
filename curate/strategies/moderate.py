"""The samples of middling distance to the median of their class.

Xia et al. 2023, "Moderate coreset: a universal method of data selection for real-world
data-efficient deep learning" (ICLR 2023).
"""

import numpy as np

from curate.distances import rowwise_distance
from curate.random_hash import random_bits
from curate.strategies import strategy

_BLOCK_VALUES = 1 << 26  # numbers of a class whose medians are taken at a time: 256 MiB
_BLOCK_ROWS = 1 << 14


@strategy
def moderate(
    vectors: np.ndarray, groups: np.ndarray, sample_ids: np.ndarray, seed: int, num_kept: int
) -> np.ndarray:
    """Around the middle rank of the distance to the class's median vector: [n, d], [n] -> [n].

    The median is taken by coordinate; classes are the groups of --balance-by. The kept ranks are a
    band around the middle: as many samples are nearer than the band as are farther.
    """
    distances = np.empty(len(vectors))
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order])) + 1
    for rows in np.split(order, bounds):
        median = _median_vector(vectors, rows)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            distances[block] = rowwise_distance(
                vectors[block], median[None], "euclidean", np.zeros(len(block), np.int64)
            )
    ranks = np.empty(len(distances))
    ranks[np.lexsort((random_bits(sample_ids, seed), distances))] = np.arange(len(distances))
    # Of an even number none is in the middle: the band then begins with the nearer of the two.
    return np.asarray(-np.abs(ranks - (len(ranks) - 1) / 2 + 0.25))


def _median_vector(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The median of each coordinate of some rows: float32 [d]; a few coordinates at a time."""
    dim = vectors.shape[1]
    step = max(_BLOCK_VALUES // len(rows), 1)
    if step >= dim:
        return np.asarray(np.median(vectors[rows], axis=0))
    medians = [
        np.median(vectors[:, start : start + step][rows], axis=0) for start in range(0, dim, step)
    ]
    return np.concatenate(medians)
