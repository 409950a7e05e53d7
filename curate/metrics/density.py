"""How sparse the neighbourhood of a sample is: the distance to its k-th nearest neighbour.

The density estimate of Loftsgaarden and Quesenberry 1965 (doi:10.1214/aoms/1177700079), ranked as
Ramaswamy et al. 2000 rank outliers (doi:10.1145/342009.335437).
"""

import numpy as np

from curate.distances import TILE_BYTES, rowwise_distance
from curate.errors import CurateError, OptionError
from curate.metrics import metric

_PRODUCT_MARGIN = 1e-4  # of float32 products of rows of length 1, far above their rounding


@metric
def density(
    vectors: np.ndarray,
    sample_ids: np.ndarray,
    reference_vectors: np.ndarray,
    reference_ids: np.ndarray,
    distance: str,
    neighbours: int = 10,
) -> np.ndarray:
    """Distance to the k-th nearest other sample, k = `neighbours`: [n, d], [n], [r, d], [r] -> [n].

    The references, with sorted ids, are all samples of the corpus up to 65,536, and so many drawn
    at random above: exact below, and above the k-th neighbour among these, which is about the
    k·n/r-th of all. A sample is never its own neighbour. Far from its neighbours is unusual, and
    scores high; the easiest end is what is densest, and most redundant.
    """
    num_others = len(reference_ids) - 1
    if num_others < 1:
        raise CurateError("there is no other sample to compare with: density needs a larger corpus")
    if not 1 <= neighbours <= num_others:
        raise OptionError(
            f"--option neighbours={neighbours}: give 1 to {num_others}, the number of samples to "
            "compare with"
        )
    scores = np.empty(len(vectors))
    step = max(TILE_BYTES // 4 // len(reference_ids), 1)
    for start in range(0, len(vectors), step):
        tile = slice(start, start + step)
        scores[tile] = _distances_to_neighbour(
            vectors[tile], sample_ids[tile], reference_vectors, reference_ids, distance, neighbours
        )
    return scores


def _distances_to_neighbour(
    vectors: np.ndarray,
    sample_ids: np.ndarray,
    reference_vectors: np.ndarray,
    reference_ids: np.ndarray,
    distance: str,
    neighbours: int,
) -> np.ndarray:
    """The distance of each row to its k-th nearest reference, [t, d] -> [t].

    Which references may be the k nearest is read from the matrix product, their distances from the
    differences, because products lose the digits of short distances.
    """
    products = vectors @ reference_vectors.T  # the nearest is the largest
    scale = 1.0
    if distance == "euclidean":
        squares = np.einsum("rd,rd->r", reference_vectors, reference_vectors)
        products -= squares / 2
        scale = float(max(squares.max(), np.square(vectors).sum(axis=1).max(), 1e-30))
    index = np.searchsorted(reference_ids, sample_ids).clip(max=len(reference_ids) - 1)
    is_own = np.flatnonzero(reference_ids[index] == sample_ids)
    products[is_own, index[is_own]] = -np.inf
    position = products.shape[1] - neighbours
    smallest = np.partition(products, position, axis=1)[:, position]
    rows, columns = np.nonzero(products >= (smallest - _PRODUCT_MARGIN * scale)[:, None])
    distances = rowwise_distance(vectors[rows], reference_vectors[columns], distance)
    order = np.lexsort((distances, rows))
    first = np.searchsorted(rows, np.arange(len(vectors)))  # np.nonzero gives rows in order
    return np.asarray(distances[order][first + neighbours - 1])
