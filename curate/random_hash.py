"""Seeded pseudo-random numbers by sample id: the same on every platform and for any sharding."""

import numpy as np


def random_bits(sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """64 random bits for each id: int64 [n] -> uint64 [n].

    SplitMix64 (Steele et al. 2014), applied to the id after the seed. It is a bijection of the
    ids, so two samples never share a value: sorting by it is a permutation without ties.
    """
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
        return _mix(_mix(sample_ids.astype(np.uint64)) ^ start)


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
