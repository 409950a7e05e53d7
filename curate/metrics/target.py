"""How near a sample is to a target set: to its images, and to what it would teach a model.

By images: the nearest target, as the image-based filter of DataComp asks for it (Gadre et al. 2023,
arXiv:2304.14108, section 3.4, there for whole clusters). By gradients: LESS (Xia et al. 2024,
arXiv:2402.04333, section 4), here with the gradients of a probe's last layer.
"""

import numpy as np

from curate.distances import l2_normalize, nearest_centroids
from curate.metrics import metric


@metric
def target_similarity(vectors: np.ndarray, target_vectors: np.ndarray) -> np.ndarray:
    """The largest cosine with a sample of the target set: [n, d], [t, d] -> [n] in [−1, 1].

    Near to the target is worth keeping, so it scores high.
    """
    distances = nearest_centroids(l2_normalize(vectors), l2_normalize(target_vectors), "cosine")[1]
    return np.asarray(1 - distances.astype(np.float64))


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
