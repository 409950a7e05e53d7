"""Two geometries. cosine: rows of length 1, distance 1 − x·c. euclidean: rows as they are, distance ‖x − c‖₂."""

from collections.abc import Iterator

import numpy as np

from curate.errors import CurateError

DISTANCES = ("cosine", "euclidean")
_PIECE = 1 << 18  # numbers whose differences fit the processor's cache: 1 MiB
TILE_BYTES, _TILE_ROWS = 1 << 26, 1 << 11  # of a tile [rows, k] of the matrix product, at most


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


def between(rows: np.ndarray, others: np.ndarray, distance: str, chosen: np.ndarray | None = None) -> np.ndarray:
    """The distance of each prepared row to the row beside it, or to the one `chosen` for it: [n, d], [m, d] -> float32 [n].

    From the differences, because 1 − x·c and ‖x‖² − 2x·c + ‖c‖² lose the digits of short distances. For
    rows of length 1, 1 − x·c = ‖x − c‖²/2.
    """
    squares = np.empty(len(rows), np.float32)
    step = max(_PIECE // max(rows.shape[1], 1), 1)
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        differences = rows[piece] - (others[piece] if chosen is None else others[chosen[piece]])
        squares[piece] = np.einsum("nd,nd->n", differences, differences)
    return np.asarray(squares / 2 if distance == "cosine" else np.sqrt(squares))


def nearest_tiles(rows: np.ndarray, centroids: np.ndarray, distance: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles of prepared rows, float32 [t, d], one after the other, and the nearest prepared centroid of each row, int32 [t]."""
    # argmax of x·c − ‖c‖²/2 is the nearest centroid; cosine's centroids are of length 1, so there the second term is constant.
    half_norms = 0.5 * np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64).astype(np.float32)
    step = min(max(TILE_BYTES // 4 // len(centroids), 1), _TILE_ROWS, len(rows))
    products = np.empty((step, len(centroids)), np.float32)  # one for all tiles, which so stays in the processor's cache
    for start in range(0, len(rows), step or 1):
        tile = rows[start : start + step]
        product = np.matmul(tile, centroids.T, out=products[: len(tile)])
        if distance == "euclidean":
            product -= half_norms
        yield tile, product.argmax(axis=1).astype(np.int32)


def nearest(rows: np.ndarray, centroids: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of prepared centroids to each prepared row, and the distance: [n, d], [k, d] -> int32 [n], float32 [n]."""
    clusters = np.concatenate([np.empty(0, np.int32), *(found for _, found in nearest_tiles(rows, centroids, distance))])
    return clusters, between(rows, centroids, distance, clusters)
