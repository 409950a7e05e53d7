"""Two geometries. cosine: rows of length 1, distance 1 − x·c. euclidean: rows as they are, distance ‖x − c‖₂."""

import numpy as np

from curate.errors import CurateError

DISTANCES = ("cosine", "euclidean")
_TILE = 1 << 24  # numbers in a tile [rows, k] of the matrix product: 64 MiB


def check(distance: str) -> str:
    """The distance itself; CurateError if there is none of that name."""
    if distance not in DISTANCES:
        raise CurateError(f"no distance called '{distance}'; there are: {', '.join(DISTANCES)}")
    return distance


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def prepared(rows: np.ndarray, distance: str) -> np.ndarray:
    """Rows as the distance wants them: of length 1 for cosine, as they are for euclidean."""
    return unit(rows) if distance == "cosine" else rows


def between(rows: np.ndarray, others: np.ndarray, distance: str) -> np.ndarray:
    """The distance of each prepared row to the row beside it: [n, d], [n, d] -> float32 [n].

    From the differences, because 1 − x·c and ‖x‖² − 2x·c + ‖c‖² lose the digits of short distances. For
    rows of length 1, 1 − x·c = ‖x − c‖²/2.
    """
    squares = np.square(rows - others).sum(axis=1)
    return np.asarray(squares / 2 if distance == "cosine" else np.sqrt(squares))


def nearest(rows: np.ndarray, centroids: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each prepared row and the distance to it: [n, d], [k, d] -> int32 [n], float32 [n]."""
    clusters = np.empty(len(rows), np.int32)
    # argmax of x·c − ‖c‖²/2 is the nearest centroid in both distances; for unit centroids the term is constant.
    half_norms = 0.5 * np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64).astype(np.float32)
    step = max(_TILE // len(centroids), 1)
    for start in range(0, len(rows), step):
        tile = slice(start, start + step)
        product = rows[tile] @ centroids.T
        product -= half_norms
        clusters[tile] = product.argmax(axis=1)
    return clusters, between(rows, centroids[clusters], distance)
