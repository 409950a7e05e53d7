"""What `curate update` costs where 1% of the samples are new, against the whole chain, on made-up
vectors: Gaussian clusters in 64 dimensions, a hundred classes.

Each step is a process of its own: cluster, score ssl_prototypes, select --keep 0.5, on all but the
new shards; then an update for these; then the chain from scratch on everything. A selection under
the same centroids is made too, in a catalog of its own, and compared to the sample.

    python benchmarks/update_cost.py [SAMPLES] [FOLDER]
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import curate
from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, EmbeddingRecord
from curate.catalog.samples import load_members
from curate.execution.types import Resources
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import write_vectors
from curate.stages.cluster.stage import centroids_filename
from curate.stages.update.clusterings import extend_clustering
from curate.storage.files import link_file

SAMPLES_PER_SHARD, DIM, NUM_MODES, NUM_CLASSES = 10_000, 64, 2_000, 100
NEW_SHARE = 0.01
MAX_SAMPLES_COMPARED = 1_000_000  # up to here, with new centroids too
EMBEDDING, KEEP = "made-up", "0.5"
CHAIN = (
    ("cluster", ["cluster"]),
    ("score", ["score", "ssl_prototypes", "--clustering", "kmeans", "--name", "ssl_prototypes"]),
    ("select", ["select", "--keep", KEEP, "--name", "kept"]),
)


def write_shard_vectors(catalog: Catalog, shard_id: int) -> None:
    """A Gaussian around one of the modes for each sample; modes are of different sizes."""
    modes = np.random.default_rng(0).standard_normal((NUM_MODES, DIM))
    generator = np.random.default_rng([1, shard_id])
    shares = 1 / np.arange(1, NUM_MODES + 1) ** 0.5
    choice = generator.choice(NUM_MODES, SAMPLES_PER_SHARD, p=shares / shares.sum())
    vectors = modes[choice] + 0.7 * generator.standard_normal((SAMPLES_PER_SHARD, DIM))
    sample_ids = first_sample_id(shard_id) + np.arange(SAMPLES_PER_SHARD)
    write_vectors(catalog.vector_file(EMBEDDING, shard_id), sample_ids, vectors.astype(np.float16))


def add_shards(catalog: Catalog, first: int, stop: int) -> None:
    """The rows of shards, as `curate embed` leaves them: a run that the embedding grew by."""
    previous = catalog.find(EmbeddingRecord, EMBEDDING)
    parents = [previous.run_id] if previous else []
    with catalog.record_run("embed", EMBEDDING, {"encoder": "pixels"}, parents=parents) as run_id:
        pass
    record = EmbeddingRecord(
        embedding=EMBEDDING,
        encoder="pixels",
        checkpoint=None,
        weights_sha256="",
        dim=DIM,
        preprocessing="{}",
        label_source="cls",
        run_id=run_id,
    )
    with catalog.writing() as connection:
        connection.execute("delete from embeddings")
        sets.insert_row(connection, record.table, record.to_dict())
        bounds = [first, stop]
        connection.execute(
            "insert into shards (shard_id, url, num_bytes, etag, num_samples, checksum, complete) "
            "select i, format('/corpus/{:06d}.tar', i), 1, '', $3, i::text, true "
            "from range($1, $2) as t(i)",
            [*bounds, SAMPLES_PER_SHARD],
        )
        connection.execute(
            "insert into embedded_shards (embedding, shard_id, num_embedded, num_failed) "
            "select $4, i, $3, 0 from range($1, $2) as t(i)",
            [*bounds, SAMPLES_PER_SHARD, EMBEDDING],
        )
        connection.execute(
            "insert into samples (sample_id, shard_id, key, label, byte_offset, num_bytes) "
            "select (i << 24) + j, i, format('{:09d}', i * $3 + j), "
            "(hash(i * $3 + j) % $4)::text, j * 30720, 30720 "
            "from range($1, $2) as t(i), range($3) as u(j) order by 1",
            [*bounds, SAMPLES_PER_SHARD, NUM_CLASSES],
        )


class Cost(NamedTuple):
    """Seconds of a command by the clock, and those that it and its workers used a core."""

    wall: float
    cpu: float


def run(folder: Path, words: list[str]) -> Cost:
    """What a command line costs, in a process of its own with two workers or one."""
    workers = ["--workers", "2"] if words[0] != "select" else []
    command = [sys.executable, "-m", "curate", *words, "-c", str(folder), *workers]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.run(  # noqa: S603 - our own command
        command, check=True, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(*(line for line in process.stderr.splitlines() if "'" in line), sep="\n", flush=True)
    return Cost(wall, cpu)


def run_chain(folder: Path, chain: tuple[tuple[str, list[str]], ...] = CHAIN) -> Cost:
    """What the steps of the chain cost together."""
    costs = {name: run(folder, words) for name, words in chain}
    for name, cost in costs.items():
        print(f"{name}: {cost.wall:.1f} s, {cost.cpu:.1f} s of a core", flush=True)
    return Cost(sum(cost.wall for cost in costs.values()), sum(cost.cpu for cost in costs.values()))


def select_under_same_centroids(catalog: Catalog, frozen: ClusteringRecord, name: str) -> str:
    """The chain from scratch, but for the centroids, under other names; the selection's name."""
    embedding = catalog.require(EmbeddingRecord, EMBEDDING)
    with catalog.record_run("cluster", name, {}, parents=[embedding.run_id]) as run_id:
        pass
    clustering = replace(
        frozen,
        clustering=f"{name}-clusters",
        centroids_file=centroids_filename(f"{name}-clusters", run_id),
        num_samples=0,
        run_id=run_id,
    )
    link_file(catalog.centroids_file(frozen), catalog.centroids_file(clustering))
    with catalog.writing() as connection:
        sets.replace_set(connection, clustering)
    extend_clustering(catalog, clustering, Resources(2))  # which lacks all samples
    curate.score(
        catalog, "ssl_prototypes", clustering=clustering.name, name=f"{name}-scores", workers=2
    )
    return curate.select(catalog, keep=float(KEEP), scoring=f"{name}-scores", name=name)


def main(num_samples: int, root: Path) -> None:
    folder = root / "catalog"
    num_shards = num_samples // SAMPLES_PER_SHARD
    num_old = num_shards - max(round(NEW_SHARE * num_shards), 1)
    catalog = Catalog(folder).create()
    for shard_id in range(num_shards):
        write_shard_vectors(catalog, shard_id)
    add_shards(catalog, 0, num_old)
    print(f"{num_old:,} shards of {SAMPLES_PER_SHARD:,} samples", flush=True)
    chain = run_chain(folder)
    add_shards(catalog, num_old, num_shards)
    print(f"{num_shards - num_old:,} shards are new", flush=True)
    cost = run(folder, ["update"])
    print(
        f"chain: {chain.wall:.1f} s, {chain.cpu:.1f} s of a core; update: {cost.wall:.1f} s, "
        f"{cost.cpu:.1f} s of a core: {100 * cost.wall / chain.wall:.1f}% and "
        f"{100 * cost.cpu / chain.cpu:.1f}%",
        flush=True,
    )
    frozen = catalog.require(ClusteringRecord, "kmeans")
    same = load_members(catalog, select_under_same_centroids(catalog, frozen, "same"))
    updated = load_members(catalog, "kept")
    print(f"as from scratch under the same centroids: {np.array_equal(same, updated)}", flush=True)
    if num_samples > MAX_SAMPLES_COMPARED:
        return
    run_chain(folder)
    scratch = load_members(catalog, "kept")
    run_chain(folder, (("cluster", ["cluster", "--seed", "1"]), *CHAIN[1:]))
    other = load_members(catalog, "kept")
    print(
        f"of {len(updated):,} members, {len(np.setdiff1d(updated, scratch)):,} would be others "
        f"from scratch; from scratch with another seed, {len(np.setdiff1d(scratch, other)):,}"
    )


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        root = Path(sys.argv[2])
        shutil.rmtree(root, ignore_errors=True)
        main(size, root)
    else:
        with tempfile.TemporaryDirectory() as name:
            main(size, Path(name))
