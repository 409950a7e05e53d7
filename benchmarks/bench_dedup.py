"""`curate dedup`: the near pairs of 100,000 vectors of 512 numbers in 100 clusters, against the
full square of every cluster, in CPU seconds; and the peak memory at a million.

The peer is the published way of SemDeDup (Abbas et al. 2023), written anew: for each cluster its
vectors are read, and all rows multiplied with all rows, of which the part above the diagonal is
looked at. It misses pairs across clusters; ours finds every pair. Both start from vectors on disk
that are sorted by cluster, and end with who stays. The second row is all of ours, with the
sorting, from the files of `embed`.

    python benchmarks/bench_dedup.py 1000000      the seconds and the peak memory of a million
"""

import itertools
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Row, time_variants

from curate.distances import l2_normalize
from curate.execution.types import Resources
from curate.formats.vectors import write_vectors
from curate.stages.dedup.methods import find_survivors
from curate.stages.dedup.neighbours import VectorFiles, VectorSets

NUM_ROWS, DIM, K, EPS = 100_000, 512, 100, 0.05
COPIED_SHARE, FILE_ROWS = 0.1, 10_000


def write_rows(folder: Path, num_rows: int, num_clusters: int) -> tuple[dict[str, int], np.ndarray]:
    """Vectors around centroids, a tenth of them copies with noise; the files and the centroids."""
    generator = np.random.default_rng(0)
    centers = l2_normalize(generator.standard_normal((num_clusters, DIM), np.float32))
    files = {}
    for first in range(0, num_rows, FILE_ROWS):
        count = min(FILE_ROWS, num_rows - first)
        rows = centers[generator.integers(0, num_clusters, count)] * np.sqrt(DIM)
        rows += 1.2 * generator.standard_normal((count, DIM), np.float32)
        num_copied = int(COPIED_SHARE * count)
        noise = generator.standard_normal((num_copied, DIM), np.float32)
        rows[:num_copied] = rows[-num_copied:] + generator.uniform(0, 0.5, (num_copied, 1)) * noise
        location = str(folder / f"{first // FILE_ROWS:08d}.parquet")
        write_vectors(location, np.arange(first, first + count), rows.astype(np.float16))
        files[location] = count
    return files, centers.astype(np.float16)


def deduplicate(files: dict[str, int], centroids: np.ndarray, eps: float) -> int:
    """Ours, from files to survivors: how many stay."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = Resources()
        sides = (VectorFiles(files, None),)
        vectors = VectorSets(sides, DIM, centroids, name, folder, one)
        located = vectors.locate()
        num_samples = len(located.sample_ids)
        pairs = vectors.sort(located, np.arange(num_samples)).find_pairs(eps, "greedy", one)
        survivors = find_survivors(num_samples, pairs, "greedy")
    return int((survivors == np.arange(num_samples)).sum())


def full_squares(rows: np.ndarray, bounds: np.ndarray, eps: float) -> int:
    """The published way, on rows sorted by cluster: how many stay."""
    num_kept = 0
    for first, last in itertools.pairwise(bounds.tolist()):
        cluster = l2_normalize(rows[first:last].astype(np.float32))
        similarities = np.triu(cluster @ cluster.T, k=1)
        num_kept += int((similarities.max(axis=0) <= 1 - eps).sum())
    return num_kept


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder, one = Path(name), Resources()
        files, centroids = write_rows(folder, NUM_ROWS, K)
        sides = (VectorFiles(files, None),)
        vectors = VectorSets(sides, DIM, centroids, name, folder, one)
        located = vectors.locate()
        prepared = vectors.sort(located, np.arange(NUM_ROWS))
        rows = np.memmap(prepared.vectors_path, np.float16, "r", shape=(NUM_ROWS, DIM))
        bounds = np.append(0, np.cumsum(np.bincount(located.clusters, minlength=K)))
        kept: dict[str, int] = {}

        def compare() -> None:
            pairs = prepared.find_pairs(EPS, "greedy", one)
            survivors = find_survivors(NUM_ROWS, pairs, "greedy")
            kept["ours"] = int((survivors == np.arange(NUM_ROWS)).sum())

        def everything() -> None:
            deduplicate(files, centroids, EPS)

        def peer() -> None:
            kept["peer"] = full_squares(rows, bounds, EPS)

        variants = {"compare": compare, "everything": everything, "peer": peer}
        seconds = time_variants(variants, cpu_time=True)
    print(f"of {NUM_ROWS:,} stay: ours {kept['ours']:,}, full squares {kept['peer']:,}")
    return [
        Row(
            "dedup, pairs of 100,000 vectors",
            seconds["compare"],
            peer=seconds["peer"],
            peer_name="full squares",
            least_of_peer=1.5,
        ),
        Row("dedup, 100,000 vectors, all of it", seconds["everything"]),
    ]


def measure_memory(num_rows: int) -> None:
    """Print seconds and the peak memory of this process, from files to survivors."""
    with tempfile.TemporaryDirectory() as folder:
        files, centroids = write_rows(Path(folder), num_rows, num_rows // 1000)
        start = time.perf_counter()
        num_kept = deduplicate(files, centroids, EPS)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{num_rows:,} × {DIM}: {num_kept:,} stay, {seconds:.1f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    measure_memory(int(sys.argv[1]))
