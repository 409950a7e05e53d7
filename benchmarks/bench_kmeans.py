"""k-means on 500,000 rows of 512 numbers, k = 1,000, 10 iterations: against faiss.Kmeans on all
rows, in CPU seconds.

`full` iterates as often over all rows, from the same start; the limit is the matrix product of as
many iterations, in float32, alone. The default is that of `curate cluster`: it fits on 64 rows a
centroid, iterates twice over all, and then assigns every row, which faiss.Kmeans does not. The last
row compares it with what does no more than it must: a fit on as many rows, and one assignment.
Objectives are recomputed in float64. About a quarter of an hour.
"""

import inspect

import numpy as np
from harness import Row, time_variants

from curate.distances import l2_normalize, nearest_centroids
from curate.stages.cluster.kmeans import ClusterSums, fit_centroids
from curate.stages.cluster.stage import cluster, default_fit_rows

NUM_ROWS, DIM, K, ITERATIONS = 500_000, 512, 1_000, 10
NUM_CENTERS = 3_000
DISTANCE = "cosine"
DEFAULTS = inspect.signature(cluster).parameters


def draw_rows() -> np.ndarray:
    """Unit rows around centers with very different numbers of rows, as classes have: [n, d]."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((NUM_CENTERS, DIM), np.float32)
    shares = generator.dirichlet(np.full(len(centers), 0.5))
    rows = generator.standard_normal((NUM_ROWS, DIM), np.float32)
    rows *= 1.2
    rows += centers[generator.choice(len(centers), NUM_ROWS, p=shares)]
    return l2_normalize(rows)


def draw_subset(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows drawn without replacement, in their order."""
    row_indices = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows[np.sort(row_indices)]


def assign(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Assign every row; returns the objective."""
    distances = nearest_centroids(rows, centroids, DISTANCE)[1]
    return float(distances.sum(dtype=np.float64))


def refine(rows: np.ndarray, centroids: np.ndarray, iterations: int) -> np.ndarray:
    """Lloyd's iterations over all rows."""
    for _ in range(iterations):
        sums = ClusterSums.zeros(centroids)
        sums.add_rows(rows, centroids, DISTANCE)
        centroids = sums.new_centroids(centroids, DISTANCE)
    return centroids


def measure() -> list[Row]:
    import faiss

    rows = draw_rows()
    initial_centroids = draw_subset(rows, K, seed=0)
    centroids: dict[str, np.ndarray] = {}

    def full() -> None:
        centroids["full"] = refine(rows, initial_centroids, ITERATIONS)

    def default() -> None:
        sample = draw_subset(rows, default_fit_rows(K), seed=1)
        fitted = fit_centroids(sample, K, DISTANCE, DEFAULTS["iterations"].default, 0)
        centroids["default"] = refine(rows, fitted, DEFAULTS["full_iterations"].default)
        assign(rows, centroids["default"])

    def peer() -> None:
        kmeans = faiss.Kmeans(
            DIM, K, niter=ITERATIONS, spherical=True, max_points_per_centroid=NUM_ROWS
        )
        kmeans.train(rows, init_centroids=initial_centroids)
        centroids["peer"] = np.asarray(kmeans.centroids)

    def subsampled() -> None:
        """What people run who have measured: a fit on as many rows, and one assignment of all."""
        kmeans = faiss.Kmeans(
            DIM,
            K,
            niter=DEFAULTS["iterations"].default,
            spherical=True,
            max_points_per_centroid=default_fit_rows(K) // K,
        )
        kmeans.train(rows)
        kmeans.index.search(rows, 1)
        centroids["subsampled"] = np.asarray(kmeans.centroids)

    def matrix_product() -> None:
        right, step = rows[:K].T.copy(), 1 << 11
        for _ in range(ITERATIONS):
            for start in range(0, NUM_ROWS, step):
                rows[start : start + step] @ right

    variants = {
        "full": full,
        "default": default,
        "peer": peer,
        "subsampled": subsampled,
        "limit": matrix_product,
    }
    seconds = time_variants(variants, cpu_time=True)
    peer_objective = assign(rows, centroids["peer"])
    for name in ("full", "default", "subsampled"):
        difference = assign(rows, centroids[name]) / peer_objective - 1
        print(f"objective of {name}: {difference:+.3%} against faiss.Kmeans on all rows")
    return [
        Row(
            "k-means, all rows",
            seconds["full"],
            limit=seconds["limit"],
            peer=seconds["peer"],
            peer_name="faiss.Kmeans",
            least_of_limit=0.88,
            least_of_peer=round(1 / 1.1, 2),
        ),
        Row(
            "k-means, default",
            seconds["default"],
            peer=seconds["peer"],
            peer_name="faiss.Kmeans",
            least_of_peer=2.5,
        ),
        Row(
            "k-means, default, subsampled",
            seconds["default"],
            peer=seconds["subsampled"],
            peer_name="faiss.Kmeans on a sample, and all assigned",
        ),
    ]
