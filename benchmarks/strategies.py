"""Each strategy of `curate select`, and `curate audit`, on made-up rows: seconds and peak memory.

    python benchmarks/strategies.py [SAMPLES] [STRATEGY…|audit]

100,000 samples of 512 numbers by default, around one center for each thousand, in ten classes;
scores are random. There are no images. Clusters and scores are written, not computed, and not
counted; for d4 the deduplication and all that follows it are. Each strategy runs in a process of
its own, which prints its time and the most memory that was resident (VmHWM, mapped files included).
k_center and design pass over all vectors for each sample that they keep: they keep a thousandth.
`audit` is of the hardest, which are selected first and not counted.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from made_up import insert_embedding

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, ScoringRecord
from curate.distances import l2_normalize, rowwise_distance
from curate.formats.centroids import save_centroids
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import write_vectors
from curate.stages.select.stage import select

DIM, SAMPLES_PER_SHARD, NUM_CLASSES = 512, 10_000, 10
KEEP = {"k_center": 0.001, "design": 0.001}
DEFAULT_KEEP = 0.3
STRATEGIES = (
    "hardest",
    "coverage",
    "density",
    "flat",
    "moderate",
    "d2",
    "facility_location",
    "k_center",
    "design",
    "d4",
    "audit",
)
_PROGRAM = """
import pathlib, resource, sys, time
start = time.monotonic()
catalog, name, keep = sys.argv[1:]
if name == "audit":
    from curate.stages.audit.stage import audit
    audit(catalog, f"ssl_prototypes-hardest-{keep}")
else:
    from curate.stages.select.stage import select
    select(catalog, keep=float(keep), strategy=name)
used = resource.getrusage(resource.RUSAGE_SELF)
status = pathlib.Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(
    f"| {name} | {keep} | {time.monotonic() - start:.0f} s "
    f"| {used.ru_utime + used.ru_stime:.0f} s | {peak / 2**20:.2f} GiB |",
    flush=True,
)
"""


def build_catalog(folder: Path, num_samples: int) -> None:
    """A catalog as embed, cluster and score leave it."""
    catalog = Catalog(folder).create()
    num_shards, num_clusters = num_samples // SAMPLES_PER_SHARD, num_samples // 1000
    generator = np.random.default_rng(0)
    centers = l2_normalize(generator.standard_normal((num_clusters, DIM), np.float32))
    clustering = ClusteringRecord(
        clustering="kmeans",
        embedding="rows",
        distance="cosine",
        k=num_clusters,
        iterations=0,
        seed=0,
        objective=0.0,
        centroids_file="kmeans-000000.npy",
        fit_rows=0,
        num_samples=num_samples,
        fingerprint="",
        run_id=0,
        full_iterations=0,
        centroids_checksum=None,
    )
    save_centroids(catalog.centroids_file(clustering), centers)
    with catalog.writing() as connection:
        insert_embedding(connection, "rows", DIM, num_shards, SAMPLES_PER_SHARD)
        connection.execute(
            "insert into samples (sample_id, shard_id, key, label, byte_offset, num_bytes, width, "
            "height) select (i // $1) << 24 | i % $1, i // $1, i::text, 'class-' || hash(i) % $2, "
            "0, 30000, 400, 300 from range($3) as t(i)",
            [SAMPLES_PER_SHARD, NUM_CLASSES, num_samples],
        )
        scoring = ScoringRecord(
            scoring="ssl_prototypes",
            metric="ssl_prototypes",
            source="kmeans",
            arguments="{}",
            num_samples=num_samples,
            num_null=0,
            reliability=None,
            fingerprint="",
            run_id=0,
        )
        for record in (clustering, scoring):
            sets.replace_set(connection, record)
        connection.execute(
            "insert into scores select 'ssl_prototypes', sample_id, "
            "hash(sample_id + 1) % 100000 / 1e5, null from samples"
        )
        for shard_id in range(num_shards):
            _write_shard(catalog, connection, shard_id, centers, generator)
        sets.refresh_sample_scores(connection)


def _write_shard(
    catalog: Catalog,
    connection: duckdb.DuckDBPyConnection,
    shard_id: int,
    centers: np.ndarray,
    generator: np.random.Generator,
) -> None:
    sample_ids = first_sample_id(shard_id) + np.arange(SAMPLES_PER_SHARD)
    clusters = generator.integers(0, len(centers), SAMPLES_PER_SHARD)
    # Rows at a distance of 0.1 to 0.5 from their centers.
    noise = generator.standard_normal((SAMPLES_PER_SHARD, DIM), np.float32)
    rows = centers[clusters] + generator.uniform(0.5, 1.5, (len(noise), 1)) * noise / DIM**0.5
    rows = l2_normalize(rows).astype(np.float32)
    write_vectors(catalog.vector_file("rows", shard_id), sample_ids, rows.astype(np.float16))
    table = pa.table(
        {
            "sample_id": sample_ids,
            "cluster_id": clusters,
            "distance": rowwise_distance(rows, centers, "cosine", clusters),
        }
    )
    connection.register("assigned", table)
    connection.execute(
        "insert into assignments (clustering, sample_id, cluster_id, distance) "
        "select 'kmeans', sample_id, cluster_id, distance from assigned"
    )


def main(num_samples: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "catalog"
        build_catalog(catalog, num_samples)
        print(f"{num_samples:,} samples of {DIM} numbers\n")
        print("| strategy | keep | time | processor time | peak memory |\n|---|---|---|---|---|")
        sys.stdout.flush()
        for name in names:
            keep = KEEP.get(name, DEFAULT_KEEP)
            if name == "audit":
                select(catalog, keep=keep, strategy="hardest")
            command = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
            subprocess.run(  # noqa: S603 - our own program
                [*command, str(catalog), name, f"{keep:g}"], check=False
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000, sys.argv[2:] or list(STRATEGIES))
