"""Gradients of a last layer, sample by sample: random projections, and how they align.

The gradient of the cross-entropy by the last layer is (p − y) ⊗ [h; 1], p the probabilities, y the
one-hot label and h the features: classes × (features + 1) numbers, of which a projection keeps k.
Each of the k is a product of two random sums, (a·(p − y)) (b·[h; 1]) with signs a and b, so that
neither the gradient nor a matrix of its size is ever made (tensor random projections, Sun et al.
2018, arXiv:2105.00105). Products of projections estimate those of gradients (Johnson and
Lindenstrauss 1984), which is what LESS compares (Xia et al. 2024, arXiv:2402.04333).
"""

import numpy as np

from curate.random_hash import random_bits

_BLOCK_ROWS = 1 << 12


class MeanGradient:
    """The mean gradient of a last layer over held-out samples, [classes, d + 1]: a sum of batches.

    The last column is that of the bias.
    """

    def __init__(self, num_classes: int, num_features: int) -> None:
        self._sum = np.zeros((num_classes, num_features + 1))
        self._count = 0

    def add(self, logits: np.ndarray, features: np.ndarray, labels: np.ndarray) -> None:
        """Logits [n, classes], features [n, d], labels int64 [n]; rows of label −1 do not count."""
        is_labelled = labels >= 0
        errors = prediction_errors(logits[is_labelled], labels[is_labelled])
        self._sum[:, :-1] += errors.T @ features[is_labelled]
        self._sum[:, -1] += errors.sum(axis=0)
        self._count += int(is_labelled.sum())

    def align(self, logits: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The scalar product with the gradient of each sample: -> float32 [n], NaN without a label.

        Exact, and without the gradients themselves: (p − y)ᵀ G [h; 1].
        """
        mean = (self._sum / max(self._count, 1)).astype(np.float32)
        by_class = features @ mean[:, :-1].T + mean[:, -1]
        errors = prediction_errors(logits, labels)
        return np.asarray(np.einsum("nc,nc->n", errors, by_class), np.float32)


class GradientProjection:
    """Projects gradients to k = `size` numbers; seed and shapes alone say what the signs are."""

    def __init__(self, seed: int, num_classes: int, num_features: int, size: int) -> None:
        shape = (num_classes + num_features + 1, size)
        bits = random_bits(np.arange(shape[0] * shape[1]), seed).reshape(shape)
        signs = np.where(bits >> np.uint64(63), np.float32(1), np.float32(-1))
        self._error_signs, self._feature_signs = np.split(signs, [num_classes])
        self._scale = np.float32(size**-0.5)

    def __call__(self, logits: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Logits [n, classes], features [n, d], labels int64 [n] -> float32 [n, k].

        NaN where the label is −1.
        """
        projected = np.empty((len(labels), self._error_signs.shape[1]), np.float32)
        for start in range(0, len(labels), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            errors = prediction_errors(logits[rows], labels[rows])
            bias_signs = self._feature_signs[-1]
            from_features = features[rows] @ self._feature_signs[:-1] + bias_signs
            projected[rows] = (errors @ self._error_signs) * from_features * self._scale
        return projected


def prediction_errors(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """softmax(logits) − onehot(label): [n, classes], [n] -> float32 [n, classes].

    NaN where the label is −1. The own class' error is minus the sum of the others, because 1 − p
    would lose the digits of a confident prediction.
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = powers / powers.sum(axis=1, keepdims=True)
    own_class = np.maximum(labels, 0)[:, None]
    np.put_along_axis(errors, own_class, 0, axis=1)
    np.put_along_axis(errors, own_class, -errors.sum(axis=1, keepdims=True), axis=1)
    errors[labels < 0] = np.nan
    return np.asarray(errors, np.float32)
