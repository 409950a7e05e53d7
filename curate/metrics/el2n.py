"""EL2N and GraNd, the metrics of Paul et al. 2021 (arXiv:2107.07075, sections 2 and 3)."""

import numpy as np

from curate.metrics import metric


@metric
def el2n(probabilities: np.ndarray, labels: np.ndarray, models: int = 0) -> np.ndarray:
    """Length of the error softmax(f(x)) − onehot(y): [n, m, classes], [n] -> [n] in [0, √2].

    The mean over the probe's models, or over the first `models` of them. A large error is hard, so
    it scores high.
    """
    lengths = _error_lengths(probabilities[:, : models or None], labels)
    return np.where(labels >= 0, lengths.mean(axis=1), np.nan)


@metric
def grand(probabilities: np.ndarray, labels: np.ndarray, feature_norms: np.ndarray) -> np.ndarray:
    """Length of the last layer's gradient, ‖p − y‖·√(1 + ‖h‖²).

    [n, m, classes], [n], [n, m] -> [n]. The mean over trained models; at initialisation, as the
    paper has it, it does not reproduce (arXiv:2303.14753).
    """
    features = np.square(feature_norms.astype(np.float64))
    lengths = _error_lengths(probabilities, labels) * np.sqrt(1 + features)
    return np.where(labels >= 0, lengths.mean(axis=1), np.nan)


def _error_lengths(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(labels)), :, np.maximum(labels, 0)] -= 1
    return np.asarray(np.linalg.norm(errors, axis=2))
