"""k-means on 500,000 rows of 512 numbers, k = 1,000, 10 iterations: against faiss.Kmeans on all rows, in CPU seconds.

`full` iterates as often over all rows, from the same start; the limit is the matrix product of as many iterations, in
float32, alone. The default is that of `curate cluster`: it fits on 64 rows a centroid, passes twice over all, and then
assigns every row, which faiss.Kmeans does not. Objectives are recomputed in float64. About a quarter of an hour.
"""

import inspect

import numpy as np
from harness import Row, timed

from curate import distances
from curate.engine import kmeans
from curate.stages.cluster import _ROWS_PER_CENTROID, cluster

ROWS, DIM, K, ITERATIONS = 500_000, 512, 1_000, 10
DEFAULT = inspect.signature(cluster).parameters


def vectors() -> np.ndarray:
    """Unit rows around 3,000 places that are of very different sizes, as classes are: float32 [n, d]."""
    generator = np.random.default_rng(0)
    places = generator.standard_normal((3_000, DIM), np.float32)
    sizes = generator.dirichlet(np.full(len(places), 0.5))
    rows = generator.standard_normal((ROWS, DIM), np.float32)
    rows *= 1.2
    rows += places[generator.choice(len(places), ROWS, p=sizes)]
    return distances.unit(rows)


def measure() -> list[Row]:
    import faiss

    rows = vectors()
    start = rows[np.sort(np.random.default_rng(0).permutation(ROWS)[:K])].copy()
    ends: dict[str, np.ndarray] = {}

    def assigned(centroids: np.ndarray) -> float:
        return float(distances.nearest(rows, centroids, "cosine")[1].sum(dtype=np.float64))

    def lloyd(centroids: np.ndarray, passes: int) -> np.ndarray:
        for _ in range(passes):
            sums = kmeans.Sums.zero(centroids)
            sums.add(rows, centroids, "cosine")
            centroids = sums.centroids(centroids, "cosine")
        return centroids

    def full() -> None:
        ends["full"] = lloyd(start, ITERATIONS)

    def default() -> None:
        sample = rows[np.sort(np.random.default_rng(1).permutation(ROWS)[: max(_ROWS_PER_CENTROID * K, 1 << 16)])]
        fitted = kmeans.fit(sample, K, "cosine", DEFAULT["iterations"].default, 0)
        ends["default"] = lloyd(fitted, DEFAULT["passes"].default)
        assigned(ends["default"])

    def peer() -> None:
        whole = faiss.Kmeans(DIM, K, niter=ITERATIONS, spherical=True, max_points_per_centroid=ROWS)
        whole.train(rows, init_centroids=start)
        ends["peer"] = np.asarray(whole.centroids)

    def product() -> None:
        centroids, step = rows[:K].T.copy(), 1 << 11
        for start in [*range(0, ROWS, step)] * ITERATIONS:
            rows[start : start + step] @ centroids

    seconds = timed({"full": full, "default": default, "peer": peer, "limit": product}, cpu=True)
    whole = assigned(ends["peer"])
    for name in ("full", "default"):
        print(f"objective of {name}: {assigned(ends[name]) / whole - 1:+.3%} against faiss.Kmeans on all rows")
    return [
        Row("k-means, all rows", seconds["full"], limit=seconds["limit"], peer=seconds["peer"], peer_name="faiss.Kmeans",
            least_of_limit=0.88, least_of_peer=round(1 / 1.1, 2)),
        Row("k-means, default", seconds["default"], peer=seconds["peer"], peer_name="faiss.Kmeans", least_of_peer=2.5),
    ]  # fmt: skip
