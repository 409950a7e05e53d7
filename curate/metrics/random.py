"""The baseline that every metric must beat."""

import numpy as np

from curate import shuffle
from curate.metrics import metric


@metric
def random(sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) by sample id and seed: int64 [n] -> [n]; the same for any split into shards."""
    return (shuffle.random_bits(sample_ids, seed) >> np.uint64(11)) * 2.0**-53
