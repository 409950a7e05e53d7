"""How well an image and its caption agree: CLIPScore of Hessel et al. 2021 (arXiv:2104.08718).

The filter of LAION (Schuhmann et al. 2022, arXiv:2210.08402) and of DataComp (Gadre et al. 2023,
arXiv:2304.14108, section 3.4).
"""

import numpy as np

from curate.distances import l2_normalize
from curate.errors import CurateError
from curate.metrics import metric


@metric
def clip_score(vectors: np.ndarray, caption_vectors: np.ndarray) -> np.ndarray:
    """Cosine of the image's and the caption's vector: [n, d], [n, d] -> [n] in [−1, 1].

    The plain cosine, as both filters have it, not 2.5 times its positive part. A caption that fits
    is worth keeping, so it scores high. CurateError for vectors of two lengths.
    """
    if vectors.shape[1] != caption_vectors.shape[1]:
        raise CurateError(
            f"vectors of images have {vectors.shape[1]} numbers and those of captions "
            f"{caption_vectors.shape[1]}: embed by an encoder with one space for both, such as "
            "open_clip:MODEL/PRETRAINED"
        )
    cosines = np.einsum(
        "nd,nd->n", l2_normalize(vectors), l2_normalize(caption_vectors), dtype=np.float64
    )
    return np.asarray(cosines)
