"""How well an image and its caption agree: CLIPScore of Hessel et al. 2021 (arXiv:2104.08718).

The filter of LAION (Schuhmann et al. 2022, arXiv:2210.08402) and of DataComp (Gadre et al. 2023,
arXiv:2304.14108, section 3.4).
"""

import numpy as np

from curate.distances import l2_normalize
from curate.metrics import metric


@metric
def clip_score(vectors: np.ndarray, caption_vectors: np.ndarray) -> np.ndarray:
    """Cosine of the image's and the caption's vector: [n, d], [n, d] -> [n] in [−1, 1].

    The plain cosine, as both filters have it, not 2.5 times its positive part. NaN where a sample
    has no caption, whose row is NaN. A caption that fits is worth keeping, so it scores high.
    """
    cosines = np.einsum(
        "nd,nd->n", l2_normalize(vectors), l2_normalize(caption_vectors), dtype=np.float64
    )
    return np.asarray(cosines)
