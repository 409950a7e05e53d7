"""What a sample would teach a model, compared with a target set: LESS.

Xia et al. 2024 (arXiv:2402.04333, section 4), here with the gradients of a probe's last layer.
"""

import numpy as np

from curate.metrics import metric


@metric
def gradient_similarity(
    gradient_features: np.ndarray, target_gradients: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Cosine of a sample's gradient with the target's mean gradient: [n, m, k], [m, k] -> [n].

    Both are random projections of the gradient of the last layer, by the same seeded signs; the
    mean over the probe's models. A step on the sample then lowers the loss on the target, so a
    large cosine scores high. A sample without an error has no gradient, and scores 0.
    """
    features = gradient_features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=2) * np.linalg.norm(target_gradients, axis=1)
    products = np.einsum("nmk,mk->nm", features, target_gradients, dtype=np.float64)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.where(labels >= 0, cosines.mean(axis=1), np.nan)
