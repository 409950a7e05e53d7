"""Dichotomous data difficulty, the metric of Meding et al. 2022 (arXiv:2110.05922, section 3)."""

import numpy as np

from curate.metrics import metric


@metric
def ddd(correct_by_architecture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many models of different architectures get a sample wrong.

    bool [n, architectures], [n] -> [n]. 0 is trivial, all is impossible; hard scores high.
    """
    return np.where(labels >= 0, (~correct_by_architecture).sum(axis=1), np.nan)
