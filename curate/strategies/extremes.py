"""The two ends of a scoring, and neither of them.

Sorscher et al. 2022, section 2: with little data keep the easy examples, with much data the hard
ones.
"""

import numpy as np

from curate.random_hash import random_bits
from curate.strategies import strategy


@strategy
def hardest(scores: np.ndarray) -> np.ndarray:
    """High scores first: [n] -> [n]."""
    return scores


@strategy
def easiest(scores: np.ndarray) -> np.ndarray:
    """Low scores first: [n] -> [n]."""
    return -scores


@strategy
def random(sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """A seeded permutation, whatever the scores: [n] -> [n]; needs no scoring."""
    return (random_bits(sample_ids, seed) >> np.uint64(11)).astype(np.float64)
