"""Weights of kept samples: the inverse of the probability that a sample of its stratum is kept.

Horvitz and Thompson 1952: a mean weighted so over what is kept estimates the mean over everything,
as far as what is kept of a stratum stands for all of it.
"""

import numpy as np


def inverse_keep_weights(strata: np.ndarray, is_kept: np.ndarray) -> np.ndarray:
    """size / number kept of each kept sample's stratum, scaled to a mean of 1: float32 [kept].

    `strata` are whole numbers from 0, int [n]; `is_kept` bool [n]. Strata of which nothing is kept
    are stood for by none.
    """
    sizes = np.bincount(strata).astype(np.float64)
    num_kept = np.bincount(strata[is_kept], minlength=len(sizes))
    weights = (sizes / np.maximum(num_kept, 1))[strata[is_kept]]
    return np.asarray(weights / weights.mean(), np.float32)
