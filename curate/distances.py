"""Two geometries. cosine: rows of length 1, distance 1 − x·c. euclidean: raw rows, ‖x − c‖₂."""

from collections.abc import Iterator

import numpy as np

DISTANCES = ("cosine", "euclidean")
_BLOCK_VALUES = 1 << 18  # numbers whose differences fit the processor's cache: 1 MiB
TILE_BYTES, _TILE_ROWS = 1 << 26, 1 << 11  # limits of a tile [rows, k] of the matrix product


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def normalize_rows(rows: np.ndarray, distance: str) -> np.ndarray:
    """Rows as the distance wants them: of length 1 for cosine, unchanged for euclidean."""
    return l2_normalize(rows) if distance == "cosine" else rows


def rowwise_distance(
    rows: np.ndarray, targets: np.ndarray, distance: str, target_indices: np.ndarray | None = None
) -> np.ndarray:
    """Distance of each normalized row to its target row: [n, d], [m, d] -> float32 [n].

    Row i is compared with target i, or with target `target_indices[i]`. From the differences,
    because 1 − x·c and ‖x‖² − 2x·c + ‖c‖² lose the digits of short distances. For rows of
    length 1, 1 − x·c = ‖x − c‖²/2.
    """
    squares = np.empty(len(rows), np.float32)
    step = max(_BLOCK_VALUES // max(rows.shape[1], 1), 1)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        block_targets = targets[block] if target_indices is None else targets[target_indices[block]]
        differences = rows[block] - block_targets
        squares[block] = np.einsum("nd,nd->n", differences, differences)
    return np.asarray(squares / 2 if distance == "cosine" else np.sqrt(squares))


def iterate_nearest(
    rows: np.ndarray, centroids: np.ndarray, distance: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles of normalized rows, float32 [t, d], and each row's nearest centroid, int32 [t]."""
    # argmax of x·c − ‖c‖²/2 is the nearest centroid. Cosine's centroids have length 1, so there
    # the second term is constant.
    half_norms = 0.5 * np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64)
    half_norms = half_norms.astype(np.float32)
    step = min(max(TILE_BYTES // 4 // len(centroids), 1), _TILE_ROWS, len(rows))
    # One buffer for all tiles, which thus stays in the processor's cache.
    products = np.empty((step, len(centroids)), np.float32)
    for start in range(0, len(rows), step or 1):
        tile = rows[start : start + step]
        product = np.matmul(tile, centroids.T, out=products[: len(tile)])
        if distance == "euclidean":
            product -= half_norms
        yield tile, product.argmax(axis=1).astype(np.int32)


def nearest_centroids(
    rows: np.ndarray, centroids: np.ndarray, distance: str
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each normalized row, and the distance to it.

    [n, d], [k, d] -> int32 [n], float32 [n].
    """
    tiles = [clusters for _, clusters in iterate_nearest(rows, centroids, distance)]
    clusters = np.concatenate([np.empty(0, np.int32), *tiles])
    return clusters, rowwise_distance(rows, centroids, distance, clusters)
