"""k-means on Ray beside the local engine and faiss: 2 million rows of 256, k = 1,000, the same centroids to begin with.

Ray has two machines, which are process trees of this one, with a processor each; in a second run a third one is lost in the
midst. Objectives are sums of 1 − x·c over all rows, in float64.

    python benchmarks/distributed_kmeans.py        (about 10 minutes)
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "engine"))
from cluster import Cluster

from curate import distances, engine, vectors
from curate.engine import Resources
from curate.stages import lloyd
from curate.stages.lloyd import Begun

ROWS, DIM, K, ITERATIONS, FILES = 2_000_000, 256, 1_000, 8, 40


def write(folder: Path) -> dict[Path, int]:
    """Rows around places of different sizes, in files of 50,000."""
    generator = np.random.default_rng(0)
    places = generator.standard_normal((2 * K, DIM), np.float32)
    sizes = generator.dirichlet(np.full(len(places), 0.5))
    count, files = ROWS // FILES, {}
    for number in range(FILES):
        rows = 1.2 * generator.standard_normal((count, DIM), np.float32)
        rows += places[generator.choice(len(places), count, p=sizes)]
        path = folder / f"{number:08d}.parquet"
        vectors.write(path, np.arange(count), distances.unit(rows).astype(np.float16))
        files[path] = count
    return files


def main(folder: Path) -> None:
    files = write(folder)
    rows = np.concatenate([distances.unit(vectors.read(file).vectors) for file in files])
    start = rows[np.sort(np.random.default_rng(1).permutation(ROWS)[:K])].copy()
    state, shared = folder / "state.npz", folder / "centroids.npy"

    def iterate() -> np.ndarray:
        begun = lloyd.keep(state, Begun(0, start))
        return lloyd.iterate(begun, files, ITERATIONS, "cosine", Resources(), kept=state, shared=shared)

    def faiss() -> np.ndarray:
        from faiss import Kmeans

        peer = Kmeans(DIM, K, niter=ITERATIONS, spherical=True, max_points_per_centroid=ROWS)
        peer.train(rows, init_centroids=start)
        return np.asarray(peer.centroids)

    def losing() -> np.ndarray:
        lost = cluster.add()

        def when_in_the_third() -> None:
            while (found := lloyd.begun(state)) is None or found.passes < 2:
                time.sleep(0.05)
            time.sleep(1)
            lost.kill()

        threading.Thread(target=when_in_the_third, daemon=True).start()
        return iterate()

    def tell(what: str, work: Callable[[], np.ndarray]) -> None:
        begin = time.monotonic()
        centroids = work()
        seconds = time.monotonic() - begin
        objective = float(distances.nearest(rows, centroids, "cosine")[1].sum(dtype=np.float64))
        known.setdefault("objective", objective)
        known.setdefault("seconds", seconds)
        print(f"| {what} | {seconds:.1f} s | {seconds / known['seconds']:.2f} | "
              f"{objective / known['objective'] - 1:+.5%} |", flush=True)  # fmt: skip

    known: dict[str, float] = {}
    print("| k-means | time | of faiss | objective beside faiss |\n|---|---|---|---|")
    tell("faiss.Kmeans, in memory", faiss)
    tell("local engine", iterate)
    cluster = Cluster()
    try:
        cluster.add()
        cluster.add()
        os.environ.update({name: value for name, value in cluster.env.items() if name.startswith("RAY_")})
        with engine.on("ray", cluster.address):
            tell("Ray, two machines", iterate)
            tell("Ray, of three machines one lost", losing)
    finally:
        cluster.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
