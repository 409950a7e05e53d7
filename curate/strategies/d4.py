"""D4: without near duplicates, then the prototypes of what is left.

Tirumala et al. 2023, "D4: improving LLM pretraining via document de-duplication and
diversification" (arXiv 2308.12284): SemDeDup, then k-means again on the survivors, because
duplicates make clusters of their own, then the samples farthest from the new centroids.
"""

import numpy as np

from curate.errors import CurateError
from curate.strategies import strategy


@strategy
def d4(survivor_distances: np.ndarray, num_kept: int, keep_dedup: float = 0.75) -> np.ndarray:
    """Farthest from the centroids of the samples that deduplication leaves: [n] -> [n].

    −inf for those that it does not leave. keep = keep_dedup · (the fraction of the survivors). The
    deduplication, the clustering and the scoring are made, unless they are there, and stay.
    """
    num_survivors = int(np.isfinite(survivor_distances).sum())
    if num_survivors < num_kept:
        raise CurateError(
            f"d4: deduplication to {keep_dedup:g} leaves {num_survivors:,} of the {num_kept:,} "
            "samples to keep: raise --option keep_dedup, or lower --keep"
        )
    return survivor_distances
