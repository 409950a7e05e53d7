"""How near a sample is to a target set: the image-based filter of DataComp.

Gadre et al. 2023 (arXiv:2304.14108, section 3.4), who ask it of whole clusters of the corpus.
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
