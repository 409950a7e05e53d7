"""Forgetting events, the metric of Toneva et al. 2019 (arXiv:1812.05159, section 3)."""

import numpy as np

from curate.metrics import metric


@metric
def forgetting(history: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often a sample that was right was wrong at its next presentation.

    bool [n, m, presentations], [n] -> [n]. Summed over models. A model that never learned the
    sample counts for all presentations, the most there can be, because what cannot be learned is
    hard; hard scores high.
    """
    events = (history[:, :, :-1] & ~history[:, :, 1:]).sum(axis=2)
    never_learned = ~history.any(axis=2)
    counts = np.where(never_learned, history.shape[2], events).sum(axis=1)
    return np.where(labels >= 0, counts, np.nan)
