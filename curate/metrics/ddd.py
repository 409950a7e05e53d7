"""Dichotomous data difficulty, the metric of Meding et al. 2022 (arXiv:2110.05922, section 3)."""

import numpy as np

from curate.metrics import metric


@metric
def ddd(correct_by_architecture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many models of different architectures get a sample wrong: [n, a], [n] -> [n].

    `correct_by_architecture` says right or wrong, or is the share of several models of an
    architecture that are right. 0 is trivial, all is impossible; hard scores high. The paper judges
    images that the models did not see, which is what folds are for: of those they learned, most are
    right from memory.
    """
    # Rounded, so that equal sums of shares are ties whatever their last binary digits.
    num_wrong = np.round((1.0 - correct_by_architecture).sum(axis=1), 9)
    return np.where(labels >= 0, num_wrong, np.nan)
