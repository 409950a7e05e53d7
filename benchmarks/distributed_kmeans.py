"""k-means on Ray, on the local engine and by faiss: 2 million rows of 256, k = 1,000, the same
initial centroids.

Ray has two machines, which are process trees of this one, with a processor each; in a second run a
third one is lost half-way. Objectives are sums of 1 − x·c over all rows, in float64.

    python benchmarks/distributed_kmeans.py        (about 10 minutes)
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "execution"))
from cluster import Cluster

from curate.distances import l2_normalize, nearest_centroids
from curate.execution.engine import use_engine
from curate.execution.types import Resources
from curate.formats.vectors import read_vectors, write_vectors
from curate.stages.cluster.refinement import (
    Checkpoint,
    load_checkpoint,
    refine_centroids,
    save_checkpoint,
)

NUM_ROWS, DIM, K, ITERATIONS, NUM_FILES = 2_000_000, 256, 1_000, 8, 40
DISTANCE = "cosine"


def write_files(folder: Path) -> dict[str, int]:
    """Rows around centers with different numbers of rows, in files of the same size."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((2 * K, DIM), np.float32)
    shares = generator.dirichlet(np.full(len(centers), 0.5))
    rows_per_file = NUM_ROWS // NUM_FILES
    files = {}
    for number in range(NUM_FILES):
        rows = 1.2 * generator.standard_normal((rows_per_file, DIM), np.float32)
        rows += centers[generator.choice(len(centers), rows_per_file, p=shares)]
        path = str(folder / f"{number:08d}.parquet")
        write_vectors(path, np.arange(rows_per_file), l2_normalize(rows).astype(np.float16))
        files[path] = rows_per_file
    return files


@dataclass
class Comparison:
    """Times k-means by several programs; the first that is measured is the reference."""

    rows: np.ndarray
    reference: tuple[float, float] | None = None  # seconds, objective

    def measure(self, name: str, run: Callable[[], np.ndarray]) -> None:
        """Run it, and print a line of the table."""
        start = time.monotonic()
        centroids = run()
        seconds = time.monotonic() - start
        distances = nearest_centroids(self.rows, centroids, DISTANCE)[1]
        objective = float(distances.sum(dtype=np.float64))
        self.reference = self.reference or (seconds, objective)
        reference_seconds, reference_objective = self.reference
        print(
            f"| {name} | {seconds:.1f} s | {seconds / reference_seconds:.2f} | "
            f"{objective / reference_objective - 1:+.5%} |",
            flush=True,
        )


def main(folder: Path) -> None:
    files = write_files(folder)
    rows = np.concatenate([l2_normalize(read_vectors(file).vectors) for file in files])
    row_indices = np.random.default_rng(1).permutation(NUM_ROWS)[:K]
    initial_centroids = rows[np.sort(row_indices)]
    checkpoint_file = str(folder / "checkpoint.npz")
    centroids_file = str(folder / "centroids.npy")

    def refine() -> np.ndarray:
        return refine_centroids(
            save_checkpoint(checkpoint_file, Checkpoint(0, initial_centroids)),
            files,
            ITERATIONS,
            DISTANCE,
            Resources(),
            checkpoint_file=checkpoint_file,
            centroids_file=centroids_file,
        )

    def fit_by_faiss() -> np.ndarray:
        from faiss import Kmeans

        kmeans = Kmeans(DIM, K, niter=ITERATIONS, spherical=True, max_points_per_centroid=NUM_ROWS)
        kmeans.train(rows, init_centroids=initial_centroids)
        return np.asarray(kmeans.centroids)

    def refine_and_lose_a_machine() -> np.ndarray:
        machine = cluster.add()
        Path(checkpoint_file).unlink()  # of the run before, which the thread must not see

        def kill_in_third_iteration() -> None:
            while (checkpoint := load_checkpoint(checkpoint_file)) is None or (
                checkpoint.iterations < 2
            ):
                time.sleep(0.05)
            time.sleep(1)
            machine.kill()

        threading.Thread(target=kill_in_third_iteration, daemon=True).start()
        return refine()

    comparison = Comparison(rows)
    print("| k-means | time | of faiss | objective against faiss |\n|---|---|---|---|")
    comparison.measure("faiss.Kmeans, in memory", fit_by_faiss)
    comparison.measure("local engine", refine)
    cluster = Cluster()
    try:
        cluster.add()
        cluster.add()
        variables = {name: value for name, value in cluster.env.items() if name.startswith("RAY_")}
        os.environ.update(variables)
        with use_engine("ray", cluster.address):
            comparison.measure("Ray, two machines", refine)
            comparison.measure("Ray, three machines, one lost", refine_and_lose_a_machine)
    finally:
        cluster.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
