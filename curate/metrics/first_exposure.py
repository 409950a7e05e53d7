"""Learned at the first exposure: the earliest case of the iteration learned.

Toneva et al. 2019 (arXiv:1812.05159) and Baldock et al. 2021 (arXiv:2106.09647, section 2) ask from
which point in training on a sample is classified right for good.
"""

import numpy as np

from curate.metrics import metric


@metric
def first_exposure(history: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The share of models that were not right in the first epoch and ever after.

    bool [n, m, presentations], [n] -> [n] in [0, 1]. What every model knows after a part of the
    first epoch, and never forgets, scores 0: it is the easiest that there is. Hard scores high.
    """
    always_right = history.all(axis=2)
    return np.where(labels >= 0, 1 - always_right.mean(axis=1, dtype=np.float64), np.nan)
