"""k-means over an embedding in files: fit on a sample with faiss, then assign everything in one pass.

The objective, which the fit lowers and which is recomputed here in float64 over all rows, is the sum
of 1 − x·c (cosine, spherical k-means), or of ‖x − c‖₂² (euclidean).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import distances, engine, vectors
from curate.atomic import replacing
from curate.errors import CurateError


class Fit(NamedTuple):
    """Centroids float32 [k, dim], and how many rows they were trained on."""

    centroids: np.ndarray
    sampled_rows: int


def fit(rows: np.ndarray, k: int, distance: str, iterations: int, seed: int) -> Fit:
    """Lloyd's iterations by faiss, on every GPU that faiss sees, else on the CPU. Raises CurateError for fewer rows than k."""
    import faiss

    if len(rows) < k:
        raise CurateError(f"{len(rows):,} rows cannot make {k:,} clusters: lower --k, or raise --sample")
    kmeans = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, seed=seed % (1 << 31), spherical=distance == "cosine", gpu=faiss.get_num_gpus() > 0,
        # faiss would silently train on 256 points a centroid; how many rows are used is decided by the caller.
        min_points_per_centroid=1, max_points_per_centroid=len(rows),
    )  # fmt: skip
    kmeans.train(np.ascontiguousarray(distances.prepared(rows, distance), np.float32))
    return Fit(np.asarray(kmeans.centroids, np.float32), len(rows))


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
        clusters, lengths = distances.nearest(rows, np.load(self.centroids), self.distance)
        table = pa.table({"sample_id": part.sample_ids, "cluster_id": clusters, "distance": lengths})
        with replacing(self.folder / file.name) as temporary:
            pq.write_table(table, temporary)
        engine.tick(len(clusters))
        exact = lengths.astype(np.float64)
        return float(exact.sum() if self.distance == "cosine" else np.square(exact).sum())
