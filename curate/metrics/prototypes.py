"""Prototype distances, the metrics of Sorscher et al. 2022 (arXiv:2206.14486, section 6)."""

import numpy as np

from curate.metrics import metric


@metric
def ssl_prototypes(vectors: np.ndarray, centroids: np.ndarray, distance: str) -> np.ndarray:
    """Distance to the nearest k-means prototype: [n, d], [k, d] -> [n].

    cosine: 1 − x·c with rows of length 1; euclidean: ‖x − c‖₂. Far from every prototype is hard, so it scores high.
    """
    if distance == "cosine":
        return np.asarray(1.0 - (vectors @ centroids.T).max(axis=1))
    nearest = (vectors @ centroids.T - 0.5 * np.square(centroids).sum(axis=1)).argmax(axis=1)
    return np.asarray(np.linalg.norm(vectors - centroids[nearest], axis=1))


@metric
def supervised_prototypes(vectors: np.ndarray, labels: np.ndarray, class_means: np.ndarray, distance: str) -> np.ndarray:
    """Distance to the mean of the sample's own class: [n, d], [n], [classes, d] -> [n].

    Labels are rows of `class_means`, −1 where there is none; that scores NaN. Far is hard, so it scores high.
    """
    means = class_means[labels]
    cosine = distance == "cosine"
    scores = 1.0 - np.einsum("nd,nd->n", vectors, means) if cosine else np.linalg.norm(vectors - means, axis=1)
    return np.where(labels >= 0, scores, np.nan)
