"""k-means in two levels against flat: what it saves, and what it costs in the objective.

Two levels begin at 50,000 clusters. Here they are forced at k = 2,000, on 200,000 made-up rows of
64 numbers around 3,000 centers with very different numbers of rows. Each variant fits on 64 rows a
centroid, iterates twice over all rows and assigns all, as `curate cluster` does; the objective is
recomputed over the assignment in float64. `nearest` is the share of the rows whose centroid is the
nearest of all. The probes are the cells whose centroids a row is compared with.

Then 50,000 centroids, which are rows themselves: how often the nearest is found, and by how much
the distance is longer in the mean. The centers have no structure of their own, so that no cells fit
them well. Seconds are the processor's.

    python benchmarks/two_levels.py        (about 5 minutes)
"""

import time

import bench_kmeans
import numpy as np

from curate.distances import nearest_centroids, rowwise_distance
from curate.stages.cluster import two_levels
from curate.stages.cluster.kmeans import ClusterSums, choose_assignment, fit_centroids
from curate.stages.cluster.stage import default_fit_rows

DISTANCE, DIM, K, NUM_ROWS = "cosine", 64, 2_000, 200_000
ITERATIONS, FULL_ITERATIONS, SEEDS = 12, 2, (0, 1)
MANY, NUM_QUERIES = 50_000, 5_000


def cluster(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids, and the cluster of each row, as `curate cluster` finds them."""
    sample = bench_kmeans.draw_subset(rows, default_fit_rows(K), seed)
    centroids = fit_centroids(sample, K, DISTANCE, ITERATIONS, seed)
    for _ in range(FULL_ITERATIONS):
        sums = ClusterSums.zeros(centroids)
        sums.add_rows(rows, centroids, DISTANCE)
        centroids = sums.new_centroids(centroids, DISTANCE)
    tiles = choose_assignment(centroids, DISTANCE)(rows)
    return centroids, np.concatenate([clusters for _, clusters in tiles])


def measure(rows: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The objective, the share of rows with their nearest centroid, and seconds."""
    start = time.process_time()
    centroids, clusters = cluster(rows, seed)
    seconds = time.process_time() - start
    objective = float(rowwise_distance(rows, centroids, DISTANCE, clusters).sum(dtype=np.float64))
    is_nearest = nearest_centroids(rows, centroids, DISTANCE)[0] == clusters
    return objective, float(is_nearest.mean()), seconds


def compare_objectives() -> None:
    bench_kmeans.NUM_ROWS, bench_kmeans.DIM = NUM_ROWS, DIM
    rows = bench_kmeans.draw_rows()
    flat = 0.0
    print(f"{NUM_ROWS:,} rows, k = {K:,} in {two_levels.count_cells(K)} cells\n")
    print("| k-means | objective against flat | nearest | seconds |\n|---|---|---|---|")
    for probes in (None, 4, 8, 16, 32):
        two_levels.MIN_CENTROIDS = K if probes else K + 1
        two_levels.NUM_PROBES = probes or 0
        results = np.array([measure(rows, seed) for seed in SEEDS])
        flat = flat or results[:, 0].mean()
        shown = ", ".join(f"{100 * (objective / flat - 1):+.2f}%" for objective in results[:, 0])
        name = f"two levels, {probes} probes" if probes else "flat"
        nearest, seconds = results[:, 1:].mean(axis=0)
        print(f"| {name} | {shown} | {nearest:.2%} | {seconds:.1f} |", flush=True)


def compare_assignments() -> None:
    bench_kmeans.NUM_ROWS, bench_kmeans.DIM = MANY + NUM_QUERIES, DIM
    rows = bench_kmeans.draw_rows()
    order = np.random.default_rng(0).permutation(len(rows))
    centroids, queries = rows[order[:MANY]], rows[order[MANY:]]
    cells = two_levels.CentroidCells.build(centroids, DISTANCE)
    start = time.process_time()
    nearest, distances = nearest_centroids(queries, centroids, DISTANCE)
    flat_seconds = time.process_time() - start
    print(f"\n{MANY:,} centroids in {len(cells.centers)} cells\n")
    print("| probes | nearest | distance | time of flat |\n|---|---|---|---|")
    for probes in (8, 16, 32, 64):
        two_levels.NUM_PROBES = probes
        start = time.process_time()
        found = np.concatenate([clusters for _, clusters in cells.iterate_nearest(queries)])
        seconds = time.process_time() - start
        longer = rowwise_distance(queries, centroids, DISTANCE, found).sum() / distances.sum() - 1
        share = (found == nearest).mean()
        print(f"| {probes} | {share:.1%} | {longer:+.2%} | {seconds / flat_seconds:.2f} |")


if __name__ == "__main__":
    compare_objectives()
    compare_assignments()
