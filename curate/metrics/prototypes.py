"""Prototype distances, the metrics of Sorscher et al. 2022 (arXiv:2206.14486, section 6)."""

import numpy as np

from curate.distances import nearest_centroids, rowwise_distance
from curate.metrics import metric


@metric
def ssl_prototypes(vectors: np.ndarray, centroids: np.ndarray, distance: str) -> np.ndarray:
    """Distance to the nearest k-means prototype: [n, d], [k, d] -> [n].

    cosine: 1 − x·c with rows of length 1; euclidean: ‖x − c‖₂. Far from every prototype is hard, so
    it scores high.
    """
    return nearest_centroids(vectors, centroids, distance)[1]


@metric
def supervised_prototypes(
    vectors: np.ndarray, labels: np.ndarray, class_means: np.ndarray, distance: str
) -> np.ndarray:
    """Distance to the mean of the sample's own class: [n, d], [n], [classes, d] -> [n].

    Labels are rows of `class_means`, −1 where there is none; that scores NaN. Far is hard, so it
    scores high.
    """
    distances = rowwise_distance(vectors, class_means, distance, labels)
    return np.where(labels >= 0, distances, np.nan)
