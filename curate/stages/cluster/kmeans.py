"""k-means over an embedding in files: a fit on a sample, Lloyd's iterations over every file, then
the assignment.

The objective, which every iteration lowers and which is recomputed in float64 over all rows, is the
sum of 1 − x·c (cosine, spherical k-means), or of ‖x − c‖₂² (euclidean).
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from curate.distances import (
    TILE_BYTES,
    iterate_nearest,
    normalize_rows,
    rowwise_distance,
)
from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.formats.centroids import load_centroids
from curate.formats.vectors import read_vectors
from curate.progress import progress_bar
from curate.stages.cluster import two_levels
from curate.stages.cluster.two_levels import CentroidCells
from curate.storage import files
from curate.storage.atomic import atomic_write

# The fit sees an eighth of its rows first, then twice as many, and so on. Each level starts where
# the one before it stopped, so that most of the way costs little.
_SUBSAMPLING_LEVELS = (8, 4, 2, 1)
_MIN_LEVEL_ROWS = 1 << 12  # a level of fewer rows saves nothing
_SMALL_VALUES = 1 << 19  # numbers in a file whose sums need no sparse matrix
_SPLIT_OFFSET = 2.0**-10  # how far the halves of a split cluster are moved apart, relative
_ROWS_PER_CELL = 256  # that the cells of a fit in two levels are fitted on

# From normalized rows to tiles of them, each with its rows' centroids, int32 [t].
Assign = Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]


def fit_centroids(
    rows: np.ndarray, k: int, distance: str, iterations: int, seed: int
) -> np.ndarray:
    """Centroids float32 [k, dim] of a sample, by faiss: on every GPU that it sees, else on the CPU.

    `rows` are normalized, float32 [n, dim] in any order; every level takes rows from all of them.
    Many centroids are fitted in two levels. Raises CurateError for fewer rows than k.
    """
    if len(rows) < k:
        raise CurateError(
            f"{len(rows):,} rows cannot make {k:,} clusters: lower --k, or raise --fit-rows"
        )
    fit = _fit_in_cells if k >= two_levels.MIN_CENTROIDS else _fit_by_faiss
    min_rows = max(8 * k, _MIN_LEVEL_ROWS)
    levels = [level for level in _SUBSAMPLING_LEVELS if len(rows) // level >= min_rows]
    levels = levels[-iterations:] or [1]
    centroids = None
    bounds = [iterations * index // len(levels) for index in range(len(levels) + 1)]
    shares = [
        (stop - start) * len(rows) // level
        for level, start, stop in zip(levels, bounds, bounds[1:], strict=False)
    ]
    with progress_bar("fit", sum(shares)) as advance:
        for level, start, stop, share in zip(levels, bounds, bounds[1:], shares, strict=False):
            centroids = fit(rows[::level], k, distance, stop - start, seed, centroids)
            advance(share, share)
    return np.asarray(centroids, np.float32)


def _fit_in_cells(
    rows: np.ndarray,
    k: int,
    distance: str,
    iterations: int,
    seed: int,
    centroids: np.ndarray | None,
) -> np.ndarray:
    """Lloyd's iterations in two levels. Without centroids, each cell's rows have theirs fitted.

    These are not kept in their cells: the iterations move them all.
    """
    if centroids is None:
        num_cells = two_levels.count_cells(k)
        step = max(len(rows) // (_ROWS_PER_CELL * num_cells), 1)
        centers = fit_centroids(rows[::step], num_cells, distance, iterations, seed)
        cells = np.concatenate([cells for _, cells in iterate_nearest(rows, centers, distance)])
        counts = two_levels.divide_centroids(np.bincount(cells, minlength=num_cells), k)
        parts = [
            fit_centroids(rows[cells == cell], int(count), distance, iterations, seed)
            for cell, count in enumerate(counts)
            if count
        ]
        centroids = np.concatenate(parts)
    for _ in range(iterations):
        sums = ClusterSums.zeros(centroids)
        sums.add_rows(rows, centroids, distance)
        centroids = sums.new_centroids(centroids, distance)
    return centroids


def choose_assignment(centroids: np.ndarray, distance: str) -> Assign:
    """How rows are assigned to so many centroids: to the nearest, or by two levels to a near one.

    The same centroids give the same assignment, whoever makes it.
    """
    if len(centroids) >= two_levels.MIN_CENTROIDS:
        return CentroidCells.build(centroids, distance).iterate_nearest
    return functools.partial(iterate_nearest, centroids=centroids, distance=distance)


def _fit_by_faiss(
    rows: np.ndarray,
    k: int,
    distance: str,
    iterations: int,
    seed: int,
    initial_centroids: np.ndarray | None,
) -> np.ndarray:
    import faiss

    options = {}
    # k-means++ (Arthur and Vassilvitskii 2007) finds clusters that are far apart, where random rows
    # often start two in one. In faiss since 1.15.
    plus_plus = getattr(faiss, "ClusteringInitMethod_KMEANS_PLUS_PLUS", None)
    if initial_centroids is None and plus_plus is not None:
        options["init_method"] = plus_plus
    kmeans = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=iterations,
        seed=seed % (1 << 31),
        spherical=distance == "cosine",
        gpu=faiss.get_num_gpus() > 0,
        # faiss would silently train on 256 points per centroid; the caller decides how many rows.
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
        **options,
    )
    kmeans.train(np.ascontiguousarray(rows), init_centroids=initial_centroids)
    return np.asarray(kmeans.centroids, np.float32)


def estimate_memory(
    fit_rows: int, largest_file: int, dim: int, k: int, num_groups: int
) -> tuple[int, int]:
    """Bytes of the fit on so many rows, and of a worker of an iteration over files of so many."""
    # The sample, the half of it that a level takes, or a large cell of two levels; centroids.
    fit = 4 * dim * (fit_rows + fit_rows // 2 + 4 * k)
    # A file in half and in single precision and two copies while its rows are scaled; a tile of
    # products; the sums in the tree.
    sums = 8 * dim * k * (3 + max(num_groups, 1).bit_length())
    tiles = 2 * min(4 * k * largest_file, TILE_BYTES)
    num_copies = 2 if k >= two_levels.MIN_CENTROIDS else 1
    return fit, 14 * dim * largest_file + tiles + num_copies * 4 * dim * k + sums


@dataclass
class ClusterSums:
    """What an iteration knows of some rows: each cluster's sum float64 [k, dim], and its count."""

    sums: np.ndarray
    counts: np.ndarray
    squared_norms: float = 0.0  # the sum of all rows' squared lengths

    @classmethod
    def zeros(cls, centroids: np.ndarray) -> "ClusterSums":
        return cls(np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64))

    def add_rows(
        self,
        rows: np.ndarray,
        centroids: np.ndarray,
        distance: str,
        assign: Assign | None = None,
    ) -> None:
        """Assign normalized rows, and add them. `assign` is of these centroids, if it was made."""
        assign = assign or choose_assignment(centroids, distance)
        # Both ways add the rows of a tile in the same order, in single precision. scipy is seven
        # times as fast, but its import takes longer than all else of a small clustering.
        sum_by_cluster = _sum_by_cluster if rows.size <= _SMALL_VALUES else _sum_by_product
        for tile, clusters in assign(rows):
            self.sums += sum_by_cluster(tile, clusters, len(centroids))
            self.counts += np.bincount(clusters, minlength=len(centroids))
            if distance == "euclidean":
                self.squared_norms += float(np.square(tile).sum(dtype=np.float64))

    def merge(self, sums: "ClusterSums") -> "ClusterSums":
        return ClusterSums(
            self.sums + sums.sums,
            self.counts + sums.counts,
            self.squared_norms + sums.squared_norms,
        )

    def objective(self, centroids: np.ndarray, distance: str) -> float:
        """That of the rows under the centroids they were assigned to."""
        centroids = centroids.astype(np.float64)
        products = float(np.vdot(self.sums, centroids))
        if distance == "cosine":
            return int(self.counts.sum()) - products
        squared_centroids = np.square(centroids).sum(axis=1)
        return self.squared_norms - 2 * products + float(self.counts @ squared_centroids)

    def new_centroids(self, old: np.ndarray, distance: str) -> np.ndarray:
        """float32 [k, dim]. An empty cluster takes half of a largest one: each side of its mean."""
        counts = self.counts.copy()
        means = np.where(counts[:, None] > 0, self.sums / np.maximum(counts, 1)[:, None], old)
        factors = np.where(np.arange(means.shape[1]) % 2, 1 + _SPLIT_OFFSET, 1 - _SPLIT_OFFSET)
        for empty in np.flatnonzero(counts == 0):
            largest = int(counts.argmax())
            mean = means[largest].copy()
            means[empty], means[largest] = mean * factors, mean * (2 - factors)
            counts[empty] = counts[largest] // 2
            counts[largest] -= counts[empty]
        return normalize_rows(means.astype(np.float32), distance)


def _sum_by_cluster(rows: np.ndarray, clusters: np.ndarray, k: int) -> np.ndarray:
    """The sum of each cluster's rows: float32 [n, dim], int32 [n] -> float32 [k, dim]."""
    sums = np.zeros((k, rows.shape[1]), np.float32)
    np.add.at(sums, clusters, rows)
    return sums


def _sum_by_product(rows: np.ndarray, clusters: np.ndarray, k: int) -> np.ndarray:
    """The same: a matrix of ones, one a row, in the column of its cluster, times the rows."""
    import scipy.sparse

    values, bounds = np.ones(len(rows), np.float32), np.arange(len(rows) + 1)
    membership = scipy.sparse.csr_array((values, clusters, bounds), (len(rows), k))
    return np.asarray(membership.T @ rows)


@dataclass(frozen=True)
class SumClusters:
    """The task: the sums of a group of files under the centroids in a file.

    That is all of an iteration but its last step. See `read_vectors` for `within`.
    """

    centroids_file: str
    distance: str
    within: str | None = None

    def __call__(self, group: tuple[str, ...]) -> ClusterSums:
        centroids = load_centroids(self.centroids_file)
        assign = choose_assignment(centroids, self.distance)
        sums = ClusterSums.zeros(centroids)
        for file in group:
            rows = read_vectors(file, self.within).vectors
            sums.add_rows(normalize_rows(rows, self.distance), centroids, self.distance, assign)
            report_progress(len(rows))
        return sums


@dataclass(frozen=True)
class AssignClusters:
    """The task: assign one file of vectors, and write (sample_id, cluster_id, distance).

    `centroids_checksum` is of the file, which a worker reads once. Returns its share of the
    objective.
    """

    centroids_file: str
    centroids_checksum: str | None
    distance: str
    folder: str
    within: str | None = None

    def __call__(self, file: str) -> float:
        import pyarrow as pa
        import pyarrow.parquet as pq

        shard = read_vectors(file, self.within)
        rows = normalize_rows(shard.vectors, self.distance)
        centroids, assign = _load_assignment(
            self.centroids_file, self.centroids_checksum, self.distance
        )
        tiles = [clusters for _, clusters in assign(rows)]
        clusters = np.concatenate([np.empty(0, np.int32), *tiles])
        distances = rowwise_distance(rows, centroids, self.distance, clusters)
        table = pa.table(
            {"sample_id": shard.sample_ids, "cluster_id": clusters, "distance": distances}
        )
        with atomic_write(assignment_file(self.folder, file)) as temporary:
            pq.write_table(table, temporary)
        report_progress(len(clusters))
        exact = distances.astype(np.float64)
        return float(exact.sum() if self.distance == "cosine" else np.square(exact).sum())


@functools.lru_cache(maxsize=1)
def _load_assignment(
    location: str, checksum: str | None, distance: str
) -> tuple[np.ndarray, Assign]:
    centroids = load_centroids(location)
    return centroids, choose_assignment(centroids, distance)


def assignment_file(folder: str, vector_file: str) -> str:
    """Where the assignments of a file of vectors are written."""
    return files.join(folder, files.filename(vector_file))
