"""k-means over an embedding in files: a fit on a sample, then Lloyd's iterations over every file, then the assignment.

The objective, which every iteration lowers and which is recomputed in float64 over all rows, is the sum
of 1 − x·c (cosine, spherical k-means), or of ‖x − c‖₂² (euclidean).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate import distances, engine, vectors
from curate.atomic import replacing
from curate.errors import CurateError

# The fit sees an eighth of its rows first, then twice as many, and so on: each level starts where the one before it stopped,
# so that most of the way is gone at little cost.
_LEVELS = (8, 4, 2, 1)
_FEW = 1 << 12  # rows that cost nothing anyway
_SPLIT = 2.0**-10  # how far the halves of a split cluster are moved apart, relative to each coordinate


def fit(rows: np.ndarray, k: int, distance: str, iterations: int, seed: int) -> np.ndarray:
    """Centroids float32 [k, dim] of a sample, by faiss: on every GPU that it sees, else on the CPU.

    `rows` are prepared, float32 [n, dim] in any order; every level takes rows from all of them. Raises CurateError for fewer
    rows than k.
    """
    if len(rows) < k:
        raise CurateError(f"{len(rows):,} rows cannot make {k:,} clusters: lower --k, or raise --sample")
    levels = [part for part in _LEVELS if len(rows) // part >= max(8 * k, _FEW)][-iterations:] or [1]
    centroids = None
    for place, part in enumerate(levels):
        rounds = iterations * (place + 1) // len(levels) - iterations * place // len(levels)
        centroids = _faiss(rows[::part], k, distance, rounds, seed, centroids)
    return np.asarray(centroids, np.float32)


def _faiss(rows: np.ndarray, k: int, distance: str, iterations: int, seed: int, start: np.ndarray | None) -> np.ndarray:
    import faiss

    # k-means++ (Arthur and Vassilvitskii 2007) finds clusters that lie apart, where random rows often start two in one.
    spread = getattr(faiss, "ClusteringInitMethod_KMEANS_PLUS_PLUS", None)  # since faiss 1.15
    how = {} if start is not None or spread is None else {"init_method": spread}
    kmeans = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, seed=seed % (1 << 31), spherical=distance == "cosine", gpu=faiss.get_num_gpus() > 0,
        # faiss would silently train on 256 points a centroid; how many rows are used is decided by the caller.
        min_points_per_centroid=1, max_points_per_centroid=len(rows), **how,
    )  # fmt: skip
    kmeans.train(np.ascontiguousarray(rows), init_centroids=start)
    return np.asarray(kmeans.centroids, np.float32)


def memory(rows: int, largest: int, dim: int, k: int, num_groups: int) -> tuple[int, int]:
    """Bytes that the fit on so many rows takes, and a worker of the passes over files of up to `largest` rows."""
    fit = 4 * dim * (rows + rows // 2 + 4 * k)  # the sample, the half of it that a level takes, centroids
    # A file in half and in single precision, and two copies while its rows are scaled; a tile of products; sums of the tree.
    sums = 8 * dim * k * (3 + max(num_groups, 1).bit_length())
    return fit, 14 * dim * largest + 2 * min(4 * k * largest, distances.TILE_BYTES) + 4 * dim * k + sums


@dataclass
class Sums:
    """What an iteration needs to know of some rows: for each cluster the sum of its rows float64 [k, dim], and their number."""

    sums: np.ndarray
    counts: np.ndarray
    squares: float = 0.0  # the sum of all rows' squared lengths

    @classmethod
    def zero(cls, centroids: np.ndarray) -> "Sums":
        return cls(np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64))

    def add(self, rows: np.ndarray, centroids: np.ndarray, distance: str) -> None:
        """Assign prepared rows, and count them in."""
        import scipy.sparse

        for tile, clusters in distances.nearest_tiles(rows, centroids, distance):
            # A matrix of ones, one a row, in the column of its cluster: its product with the rows is the sums, in one pass.
            ones, ends = np.ones(len(tile), np.float32), np.arange(len(tile) + 1)
            self.sums += scipy.sparse.csr_array((ones, clusters, ends), (len(tile), len(centroids))).T @ tile
            self.counts += np.bincount(clusters, minlength=len(centroids))
            self.squares += float(np.square(tile).sum(dtype=np.float64)) if distance == "euclidean" else 0.0

    def merged(self, other: "Sums") -> "Sums":
        return Sums(self.sums + other.sums, self.counts + other.counts, self.squares + other.squares)

    def objective(self, centroids: np.ndarray, distance: str) -> float:
        """That of the rows under the centroids they were assigned to."""
        products = float(np.vdot(self.sums, centroids.astype(np.float64)))
        if distance == "cosine":
            return int(self.counts.sum()) - products
        return self.squares - 2 * products + float(self.counts @ np.square(centroids.astype(np.float64)).sum(axis=1))

    def centroids(self, old: np.ndarray, distance: str) -> np.ndarray:
        """The new centroids, float32 [k, dim]. An empty cluster takes half of a largest one: both stand beside its mean."""
        counts = self.counts.copy()
        means = np.where(counts[:, None] > 0, self.sums / np.maximum(counts, 1)[:, None], old)
        signs = np.where(np.arange(means.shape[1]) % 2, 1 + _SPLIT, 1 - _SPLIT)
        for empty in np.flatnonzero(counts == 0):
            largest = int(counts.argmax())
            means[empty], means[largest] = means[largest] * signs, means[largest] * (2 - signs)
            counts[empty] = counts[largest] // 2
            counts[largest] -= counts[empty]
        return distances.prepared(means.astype(np.float32), distance)


@dataclass(frozen=True)
class Iterate:
    """The task: the sums of a group of files under the centroids in a file: all of an iteration but its last step."""

    centroids: Path
    distance: str

    def __call__(self, files: tuple[Path, ...]) -> Sums:
        centroids = _centroids(self.centroids)
        found = Sums.zero(centroids)
        for file in files:
            rows = vectors.read(file).vectors
            found.add(distances.prepared(rows, self.distance), centroids, self.distance)
            engine.tick(len(rows))
        return found


@dataclass(frozen=True)
class Assign:
    """The task: assign one file of vectors, write (sample_id, cluster_id, distance), return its share of the objective."""

    centroids: Path
    distance: str
    folder: Path

    def __call__(self, file: Path) -> float:
        import pyarrow as pa
        import pyarrow.parquet as pq

        part = vectors.read(file)
        rows = distances.prepared(part.vectors, self.distance)
        clusters, lengths = distances.nearest(rows, _centroids(self.centroids), self.distance)
        table = pa.table({"sample_id": part.sample_ids, "cluster_id": clusters, "distance": lengths})
        with replacing(self.folder / file.name) as temporary:
            pq.write_table(table, temporary)
        engine.tick(len(clusters))
        exact = lengths.astype(np.float64)
        return float(exact.sum() if self.distance == "cosine" else np.square(exact).sum())


def _centroids(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.asarray(np.load(file, allow_pickle=False))
