"""D2 pruning: hard samples, but not many that are neighbours.

Maharana et al. 2024, "D2 pruning: message passing for balancing diversity and difficulty in data
pruning" (arXiv 2310.07931).
"""

import heapq
from collections.abc import Callable

import numpy as np

from curate.random_hash import random_bits
from curate.strategies import Neighbours, check_option, order_priorities, strategy


@strategy
def d2(
    scores: np.ndarray,
    find_neighbours: Callable[[int], Neighbours],
    sample_ids: np.ndarray,
    seed: int,
    num_kept: int,
    num_neighbours: int = 10,
    gamma: float = 1.0,
) -> np.ndarray:
    """The highest scores, each taking from its neighbours' when it is taken: [n] -> [n].

    Forward, on the graph of nearest neighbours: w_i = s_i + Σ_j exp(−d_ij)·s_j. Then the highest w
    is taken, and w_j of each of its neighbours falls by exp(−γ·d_ij)·w_i, until the budget is full.
    Scores below 0 are moved up so that the lowest is 0.
    """
    check_option("gamma", gamma, is_good=0 <= gamma < np.inf, expected="a number from 0")
    neighbours = find_neighbours(num_neighbours)
    weights = scores - min(float(scores.min()), 0.0)
    weights = weights + (np.exp(-neighbours.distances) * weights[neighbours.indices]).sum(axis=1)
    damping = np.exp(-gamma * neighbours.distances).astype(np.float64)
    # Weights only fall, so the top of the heap is right if it is of the current weight.
    tiebreak = random_bits(sample_ids, seed).tolist()
    pairs = zip(weights.tolist(), tiebreak, strict=True)
    heap = [(-weight, bits, row) for row, (weight, bits) in enumerate(pairs)]
    heapq.heapify(heap)
    is_taken = np.zeros(len(scores), bool)
    order: list[int] = []
    while len(order) < num_kept:
        weight, bits, row = heapq.heappop(heap)
        if -weight > weights[row]:
            heapq.heappush(heap, (-weights[row], bits, row))
            continue
        is_taken[row] = True
        order.append(row)
        weights[neighbours.indices[row]] -= damping[row] * weights[row]
    return order_priorities(order, len(scores))
