"""Nearest neighbours and clusters of the candidates of a selection."""

import tempfile
from pathlib import Path

import numpy as np

from curate.distances import iterate_nearest, nearest_centroids, normalize_rows
from curate.errors import OptionError
from curate.execution import engine
from curate.execution.types import Resources
from curate.progress import progress_bar
from curate.stages.cluster.kmeans import fit_centroids
from curate.stages.cluster.stage import auto_k
from curate.stages.select.worker import FindNeighbours
from curate.storage import files as storage
from curate.storage.atomic import atomic_write
from curate.strategies import Neighbours

EXACT_ROWS = 1 << 13  # up to so many, every row is compared with every other
_MAX_COUNT = 1 << 10  # neighbours
_NEAR_CLUSTERS = 10  # beyond, with the rows of so many clusters
_FIT_ROWS_PER_CENTROID, _FIT_ITERATIONS = 64, 6
_BLOCK_ROWS = 1 << 14


def find_clusters(rows: np.ndarray, k: int, distance: str, seed: int) -> np.ndarray:
    """The cluster of each row after k-means on all of them: [n, d] -> int32 [n]."""
    normalized = np.ascontiguousarray(normalize_rows(rows, distance), np.float32)
    centroids = fit_centroids(normalized, k, distance, 2 * _FIT_ITERATIONS, seed)
    return nearest_centroids(normalized, centroids, distance)[0]


def find_neighbours(
    vectors: np.ndarray,
    count: int,
    *,
    distance: str,
    seed: int,
    folder: Path,
    shared_folder: str,
    resources: Resources,
) -> Neighbours:
    """The `count` nearest others of each normalized row: [n, d] -> [n, count] twice.

    Exact up to 8,192 rows. Beyond, they are looked for in the ten clusters whose centroids are
    nearest to that of the row's own, so that no row is compared with all: a map over clusters, by
    the engine in use. Workers read `shared_folder`, a URL or `folder` itself. OptionError where
    there are not so many others.
    """
    num_rows, dim = vectors.shape
    if not 1 <= count <= _MAX_COUNT:
        raise OptionError(f"--option num_neighbours={count}: give one from 1 to {_MAX_COUNT:,}")
    if count >= num_rows:
        raise OptionError(
            f"--option num_neighbours={count}: there are {num_rows:,} candidates (with --scope, in "
            "the smallest group that is chosen from): give fewer"
        )
    clusters, centroids = _divide(vectors, distance, seed)
    order = np.argsort(clusters, kind="stable")
    sizes = np.bincount(clusters, minlength=len(centroids))
    is_used = sizes > 0
    bounds = np.concatenate([[0], np.cumsum(sizes[is_used])])
    near_clusters = _near_clusters(centroids[is_used], sizes[is_used], count)
    # A name for each call: workers keep the tables that they have read.
    with tempfile.NamedTemporaryFile(dir=folder, prefix="rows-", delete=False) as file:
        for start in range(0, num_rows, _BLOCK_ROWS):
            file.write(np.ascontiguousarray(vectors[order[start : start + _BLOCK_ROWS]]).data)
    path = Path(file.name)
    location = storage.join(shared_folder, path.name)
    if storage.is_url(shared_folder):
        storage.upload(path, location)
    tables = f"{location}.npz"
    with atomic_write(tables) as temporary, temporary.open("wb") as table_file:
        np.savez(table_file, bounds=bounds, near_clusters=near_clusters)
    task = FindNeighbours(location, tables, dim, count, distance)
    indices = np.empty((num_rows, count), np.int32)
    distances = np.empty((num_rows, count), np.float32)
    with progress_bar("neighbours", num_rows) as advance:
        outcomes = engine.map_or_raise(task, range(len(bounds) - 1), resources, advance=advance)
        for cluster, neighbours in outcomes:
            rows = order[bounds[cluster] : bounds[cluster + 1]]
            indices[rows] = order[neighbours.indices]
            distances[rows] = neighbours.distances
    path.unlink()
    return Neighbours(indices, distances)


def _divide(vectors: np.ndarray, distance: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the rows, int32 [n], and their centroids: one where there are few rows."""
    num_rows = len(vectors)
    if num_rows <= EXACT_ROWS:
        return np.zeros(num_rows, np.int32), np.zeros((1, vectors.shape[1]), np.float32)
    k = auto_k(num_rows)
    generator = np.random.default_rng(seed)
    count = min(num_rows, max(_FIT_ROWS_PER_CENTROID * k, 1 << 14))
    fit_rows = np.sort(generator.choice(num_rows, count, replace=False))
    centroids = fit_centroids(vectors[fit_rows], k, distance, _FIT_ITERATIONS, seed)
    clusters = np.empty(num_rows, np.int32)
    for start in range(0, num_rows, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        tiles = [tile for _, tile in iterate_nearest(vectors[rows], centroids, distance)]
        clusters[rows] = np.concatenate(tiles)
    return clusters, centroids


def _near_clusters(centroids: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """For each cluster those that are looked at, itself among them: int64 [k, p], −1 for none.

    Ten, and more where these have too few rows.
    """
    num_clusters = len(centroids)
    squares = np.square(centroids).sum(axis=1)
    near: list[np.ndarray] = []
    for cluster in range(num_clusters):
        distances = squares - 2 * (centroids @ centroids[cluster])
        distances[cluster] = -np.inf
        order = np.argsort(distances, kind="stable")
        enough = int(np.searchsorted(np.cumsum(sizes[order]), count + 1)) + 1
        num_near = min(max(enough, _NEAR_CLUSTERS), num_clusters)
        near.append(order[:num_near].copy())
    table = np.full((num_clusters, max(map(len, near))), -1)
    for row, near_clusters in zip(table, near, strict=True):
        row[: len(near_clusters)] = near_clusters
    return table
