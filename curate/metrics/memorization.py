"""Memorization, a metric of Feldman and Zhang 2020 (arXiv:2008.03703, section 2)."""

import numpy as np

from curate.metrics import metric


@metric
def memorization(
    correct: np.ndarray, was_trained_on: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much likelier a model is right on a sample that it was trained on.

    bool [n, m], bool [n, m], [n] -> [n] in [−1, 1], and its standard error
    √(p(1 − p)(1/n_in + 1/n_out)), p the share that is right over all models. NaN where no model, or
    every model, was trained on the sample. What is only right when memorized is hard, so it scores
    high.
    """
    num_in = was_trained_on.sum(axis=1)
    num_out = was_trained_on.shape[1] - num_in
    with np.errstate(divide="ignore", invalid="ignore"):
        correct_in = (correct & was_trained_on).sum(axis=1) / num_in
        correct_out = (correct & ~was_trained_on).sum(axis=1) / num_out
        share = correct.mean(axis=1)
        errors = np.sqrt(share * (1 - share) * (1 / num_in + 1 / num_out))
    scores = correct_in - correct_out
    return np.where(labels >= 0, scores, np.nan), np.where(labels >= 0, errors, np.nan)
