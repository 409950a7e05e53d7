"""Influence on test samples, a metric of Feldman and Zhang 2020 (arXiv:2008.03703, section 2)."""

import numpy as np

from curate.metrics import metric


@metric
def influence_max(influence: np.ndarray) -> np.ndarray:
    """The largest influence on any test sample: [n, t] -> [n]. Helping one scores high."""
    return np.asarray(influence.max(axis=1))


@metric
def influence_sum_abs(influence: np.ndarray) -> np.ndarray:
    """The sum of absolute influences on all test samples: [n, t] -> [n]. Change scores high."""
    return np.asarray(np.abs(influence).sum(axis=1))


def influence_of_subsets(was_trained_on: np.ndarray, test_correct: np.ndarray) -> np.ndarray:
    """The definition: P[test j right, i trained on] − P[test j right, i left out].

    bool [n, m], bool [m, t] -> [n, t], by two matrix products over the models. NaN where no model,
    or every model, was trained on i. With some hundred models the noise of this estimate is far
    above its signal.
    """
    trained, correct = was_trained_on.astype(np.float32), test_correct.astype(np.float32)
    num_trained = trained.sum(axis=1, keepdims=True)
    num_correct = trained @ correct
    with np.errstate(divide="ignore", invalid="ignore"):
        in_share = num_correct / num_trained
        out_share = (correct.sum(axis=0) - num_correct) / (correct.shape[0] - num_trained)
        return np.asarray(in_share - out_share)


def influence_of_leave_one_out(
    left_out: np.ndarray, rows: np.ndarray, outputs: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """How much the margin of test j falls when i is left out of a ridge regression: -> [n, t].

    `left_out` [n, d + classes] holds each sample's direction and residuals (training/ridge.py),
    `rows` [t, d] and `outputs` [t, classes] are those of the test samples, `labels` [t]. The margin
    is the output for the own class less the largest other.
    """
    directions, residuals = np.split(left_out, [rows.shape[1]], axis=1)
    own_class = np.maximum(labels, 0)
    other_outputs = outputs.copy()
    np.put_along_axis(other_outputs, own_class[:, None], -np.inf, axis=1)
    rival_class = other_outputs.argmax(axis=1)
    return np.asarray((directions @ rows.T) * (residuals[:, own_class] - residuals[:, rival_class]))
