"""k-means over an embedding in files: fit on a sample with faiss, then assign everything in one pass.

Two distances. cosine: rows and centroids of length 1 (spherical k-means), distance 1 − x·c.
euclidean: rows as they are, distance ‖x − c‖₂. The objective, which the fit lowers and which is
recomputed here in float64 over all rows, is the sum of 1 − x·c, or of ‖x − c‖₂².
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import engine, vectors
from curate.atomic import replacing
from curate.engine import Advance
from curate.errors import CurateError

DISTANCES = ("cosine", "euclidean")
_TILE = 1 << 24  # numbers in a tile [rows, k] of the matrix product: 64 MiB


class Fit(NamedTuple):
    """Centroids float32 [k, dim], and how many rows they were trained on."""

    centroids: np.ndarray
    sampled_rows: int


def check_distance(distance: str) -> str:
    """The distance itself; CurateError if there is none of that name."""
    if distance not in DISTANCES:
        raise CurateError(f"no distance called '{distance}'; there are: {', '.join(DISTANCES)}")
    return distance


def prepared(rows: np.ndarray, distance: str) -> np.ndarray:
    """Rows as the distance wants them: of length 1 for cosine, as they are for euclidean."""
    return vectors.unit(rows) if distance == "cosine" else rows


def sample(files: list[Path], sizes: list[int], rows: int, seed: int, advance: Advance) -> np.ndarray:
    """`rows` rows drawn without replacement from the files' rows, in the files' order: float32 [rows, dim].

    Only the files that hold a drawn row are read, one at a time. The draw depends on the seed and
    on the sizes alone, never on how the work is split.
    """
    total = sum(sizes)
    drawn = np.arange(total) if rows >= total else np.sort(np.random.default_rng(seed).choice(total, rows, replace=False))
    starts = np.cumsum([0, *sizes])
    taken, filled = np.empty((0, 0), np.float32), 0
    for file, start, stop in zip(files, starts, starts[1:], strict=False):
        places = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, stop)] - start
        if len(places):
            found = vectors.read(file).vectors[places]
            if not filled:
                taken = np.empty((len(drawn), found.shape[1]), np.float32)
            taken[filled : filled + len(found)] = found
            filled += len(found)
        advance(len(places), len(places))
    return taken


def fit(rows: np.ndarray, k: int, distance: str, iterations: int, seed: int) -> Fit:
    """Lloyd's iterations by faiss, on every GPU that faiss sees, else on the CPU. Raises CurateError for fewer rows than k."""
    import faiss

    if len(rows) < k:
        raise CurateError(f"{len(rows):,} rows cannot make {k:,} clusters: lower --k, or raise --sample")
    kmeans = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, seed=seed, spherical=distance == "cosine", gpu=faiss.get_num_gpus() > 0,
        # faiss would silently train on 256 points a centroid; how many rows are used is decided by the caller.
        min_points_per_centroid=1, max_points_per_centroid=len(rows),
    )  # fmt: skip
    kmeans.train(np.ascontiguousarray(prepared(rows, distance), np.float32))
    return Fit(np.asarray(kmeans.centroids, np.float32), len(rows))


def nearest(rows: np.ndarray, centroids: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each prepared row and the distance to it: [n, d], [k, d] -> int32 [n], float32 [n]."""
    clusters = np.empty(len(rows), np.int32)
    similarity = np.empty(len(rows), np.float32)
    # argmax of x·c − ‖c‖²/2 is the nearest centroid in both distances; for unit centroids the term is constant.
    half_norms = 0.5 * np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64).astype(np.float32)
    step = max(_TILE // len(centroids), 1)
    for start in range(0, len(rows), step):
        tile = slice(start, start + step)
        product = rows[tile] @ centroids.T
        product -= half_norms
        best = product.argmax(axis=1)
        clusters[tile] = best
        similarity[tile] = np.take_along_axis(product, best[:, None], 1)[:, 0] + half_norms[best]
    if distance == "cosine":
        return clusters, np.maximum(1.0 - similarity, 0.0)
    # From the differences, not from ‖x‖² − 2x·c + ‖c‖², which loses the digits of short distances.
    return clusters, np.linalg.norm(rows - centroids[clusters], axis=1)


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
        clusters, distances = nearest(prepared(part.vectors, self.distance), np.load(self.centroids), self.distance)
        table = pa.table({"sample_id": part.sample_ids, "cluster_id": clusters, "distance": distances})
        with replacing(self.folder / file.name) as temporary:
            pq.write_table(table, temporary)
        engine.tick(len(clusters))
        exact = distances.astype(np.float64)
        return float(exact.sum() if self.distance == "cosine" else np.square(exact).sum())
