"""Farthest first: every sample near to one that is kept.

Sener and Savarese 2018, "Active learning for convolutional neural networks: a core-set approach"
(arXiv 1708.00489); the greedy algorithm is Gonzalez 1985, within twice the best radius.
"""

import numpy as np

from curate.random_hash import random_bits
from curate.strategies import check_num_passes, first_of_largest, order_priorities, strategy

_BLOCK_ROWS = 1 << 14


@strategy
def k_center(vectors: np.ndarray, sample_ids: np.ndarray, seed: int, num_kept: int) -> np.ndarray:
    """Always the sample that is farthest from those taken, the first at random: [n, d] -> [n].

    A running minimum of n distances is all that it holds. One pass over the vectors for each sample
    that is kept: refused where that is more than 2^34 distances.
    """
    check_num_passes("k_center", len(vectors), num_kept)
    tiebreak = random_bits(sample_ids, seed)
    starts = range(0, len(vectors), _BLOCK_ROWS)
    squares = np.concatenate(
        [np.square(vectors[start : start + _BLOCK_ROWS]).sum(axis=1) for start in starts]
    )
    nearest = np.full(len(vectors), np.inf, np.float32)
    row = int(tiebreak.argmin())
    order = [row]
    while len(order) < num_kept:
        center = vectors[row]
        for start in starts:
            block = slice(start, start + _BLOCK_ROWS)
            to_center = vectors[block] @ center
            to_center *= -2
            to_center += squares[block] + squares[row]
            np.minimum(nearest[block], to_center, out=nearest[block])
        nearest[order[-1]] = -np.inf  # never again, whatever rounding says
        row = first_of_largest(nearest, tiebreak)
        order.append(row)
    return order_priorities(order, len(vectors))
