"""Experimental design: the samples from which a linear model would learn most about all.

Greedy A- (or V-) optimal design with a ridge: Pukelsheim 2006, "Optimal design of experiments";
Chaloner and Verdinelli 1995, "Bayesian experimental design: a review".
"""

import numpy as np

from curate.random_hash import random_bits
from curate.strategies import (
    check_num_passes,
    check_option,
    first_of_largest,
    order_priorities,
    strategy,
)

_BLOCK_ROWS = 1 << 14


@strategy
def design(
    vectors: np.ndarray, sample_ids: np.ndarray, seed: int, num_kept: int, ridge: float = 1.0
) -> np.ndarray:
    """Always the sample that most lowers the mean predictive variance over all: [n, d] -> [n].

    v(x) = xᵀ(λI + XₛᵀXₛ)⁻¹x, with λ the option `ridge`. Adding s to S lowers the mean of v by
    sᵀAMAs / (1 + sᵀAs), where A is the inverse and M the mean of xxᵀ; A and both forms of every
    sample are updated by rank one. One pass over the vectors for each sample that is kept: refused
    where that is more than 2^34 products.
    """
    check_option("ridge", ridge, is_good=0 < ridge < np.inf, expected="a number above 0")
    check_num_passes("design", len(vectors), num_kept)
    num_samples, dim = vectors.shape
    starts = range(0, num_samples, _BLOCK_ROWS)
    moments = np.zeros((dim, dim))
    for start in starts:
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64)
        moments += block.T @ block
    moments /= num_samples
    inverse = np.eye(dim) / ridge
    # Of every sample x: xᵀAx and xᵀAMAx.
    variances, gains = np.empty(num_samples), np.empty(num_samples)
    for start in starts:
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64) / ridge
        rows = slice(start, start + len(block))
        variances[rows] = np.einsum("nd,nd->n", block, block) * ridge
        gains[rows] = np.einsum("nd,nd->n", block @ moments, block)
    tiebreak = random_bits(sample_ids, seed)
    is_taken = np.zeros(num_samples, bool)
    order: list[int] = []
    while True:
        reductions = np.where(is_taken, -np.inf, gains / (1 + variances))
        row = first_of_largest(reductions, tiebreak)
        is_taken[row] = True
        order.append(row)
        if len(order) == num_kept:
            return order_priorities(order, num_samples)
        sample = vectors[row].astype(np.float64)
        direction = inverse @ sample
        direction /= np.sqrt(1 + sample @ direction)
        image = inverse @ (moments @ direction)
        scale = float(direction @ moments @ direction)
        inverse -= np.outer(direction, direction)
        directions = np.stack([direction, image], axis=1).astype(np.float32)
        for start in starts:
            rows = slice(start, start + _BLOCK_ROWS)
            along, across = (vectors[rows] @ directions).T.astype(np.float64)
            variances[rows] -= along**2
            gains[rows] += along * (scale * along - 2 * across)
