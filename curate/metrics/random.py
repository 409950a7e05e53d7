"""The baseline that every metric must beat."""

import numpy as np

from curate.metrics import metric
from curate.random_hash import random_bits


@metric
def random(sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) by id and seed: int64 [n] -> [n]; the same for any sharding."""
    return (random_bits(sample_ids, seed) >> np.uint64(11)) * 2.0**-53
