"""A hundred million samples that are not there: every stage once, on 10,000 shards of narrow rows.

What workers of `curate embed` would have left is written first, and not counted: rows, checksums
and vectors of 8 numbers, but no images. Each step is a process of its own, which prints its time,
the processor's time of it and of its workers, and its peak memory. Cluster, score and verify have
two workers, the rest is the driver alone; probe and validate run up to where their workers would
begin. `verify` finds that the shards are gone.

    python benchmarks/hundred_million.py [SHARDS [FOLDER [STEP …]]]

Steps are numbers in the order of the table, by default all. The corpus is made in FOLDER where it
is not there yet, and stays. About an hour and 25 GB of disk for 10,000 shards.
"""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.formats.sample_ids import first_sample_id, shard_filename
from curate.formats.vectors import write_vectors
from curate.stages.embed.pending import ShardMetadata

SAMPLES_PER_SHARD, NUM_CLASSES = 10_000, 1_000
SHARDS_PER_COMMIT = 100
SAMPLE_BYTES = 30_720
DIM, NUM_CENTERS = 8, 5_000
EMBEDDING = "narrow"
PROGRAM = """
import functools, pathlib, resource, sys, time
import curate
from curate.catalog.catalog import Catalog
from curate.execution import engine
class WorkersBegin(Exception): pass
def refuse_to_map(*arguments, **options):
    raise WorkersBegin
def up_to_workers(call):
    engine.map_or_raise = refuse_to_map
    try:
        call()
    except WorkersBegin:
        return
    raise SystemExit("it had no work for workers")
catalog, out = "{folder}/catalog", "{folder}/out"
start = time.monotonic()
{step}
seconds = time.monotonic() - start
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
peaks = [usage.ru_maxrss / 2**20 for usage in usages]
workers = f"{{peaks[1]:.2f}} GiB" if {has_workers} else ""
print(f"| {{sys.argv[1]}} | {{seconds:.0f}} s | {{cpu_seconds:.0f}} s "
      f"| {{peaks[0]:.2f}} GiB | {{workers}} |")
"""
STEPS = {
    "commit": """
from curate.stages.embed.commit import commit_pending
pending = pathlib.Path(catalog, "embeddings/narrow/pending")
for commit in range({num_commits}):
    pathlib.Path("{folder}/finished", str(commit)).rename(pending)
    commit_pending(Catalog(catalog), "narrow")
    pending.rmdir()
""",
    "score random": 'curate.score(catalog, "random", workers=2)',
    "select --keep 0.5, by label": """
curate.select(catalog, keep=0.5, scoring="random", name="half")
""",
    "export --index-only": 'curate.export(catalog, "half", out, index_only=True)',
    "dedup --exact": "curate.dedup(catalog, exact=True)",
    "audit --by label": 'curate.audit(catalog, "half", by="label")',
    "query class_balance": 'curate.query(catalog, "class_balance")',
    "report": "curate.report(catalog, thumbnails=0)",
    "probe, the driver": """
up_to_workers(lambda: curate.probe(catalog, model="linear", epochs=1, device="cpu"))
""",
    "validate, the driver": """
up_to_workers(
    lambda: curate.validate(catalog, ["half"], model="linear", epochs=1, seeds=4, device="cpu")
)
""",
    "cluster --k 1000": "curate.cluster(catalog, k=1_000, workers=2)",
    "score ssl_prototypes": 'curate.score(catalog, "ssl_prototypes", workers=2)',
    "select --keep 0.5, by cluster": """
curate.select(catalog, keep=0.5, scoring="ssl_prototypes", balance_by="cluster", name="hard")
""",
    "verify": "curate.verify(catalog)",
}


def register_corpus(folder: Path, num_shards: int) -> None:
    """A catalog whose shards are registered, and what workers have finished for each commit."""
    catalog = Catalog(folder / "catalog").create()
    record = EmbeddingRecord(
        embedding=EMBEDDING,
        encoder="none",
        checkpoint=None,
        weights_sha256="",
        dim=DIM,
        preprocessing="{}",
        label_source="cls",
        run_id=0,
    )
    with catalog.writing() as connection:
        sets.replace_set(connection, record)
        connection.execute(
            "insert into shards (shard_id, url, num_bytes, etag) "
            "select i, format('/corpus/{:06d}.tar', i), 300000000, '' from range(?) as t(i)",
            [num_shards],
        )
    for shard_id in range(num_shards):
        checksum = write_vectors(
            catalog.vector_file(EMBEDDING, shard_id),
            first_sample_id(shard_id) + np.arange(SAMPLES_PER_SHARD),
            draw_vectors(shard_id),
        )
        commit = str(shard_id // SHARDS_PER_COMMIT)
        path = folder / "finished" / commit / shard_filename(shard_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_pending_table(shard_id, checksum), path)


def draw_vectors(shard_id: int) -> np.ndarray:
    """Vectors around centers, float16 [n, DIM]."""
    generator = np.random.default_rng(shard_id)
    centers = generator.integers(NUM_CENTERS, size=SAMPLES_PER_SHARD)
    noise = generator.standard_normal((SAMPLES_PER_SHARD, DIM), np.float32)
    return (draw_centers()[centers] + 0.3 * noise).astype(np.float16)


@functools.cache
def draw_centers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((NUM_CENTERS, DIM), np.float32)


def make_pending_table(shard_id: int, vectors_checksum: str = "") -> pa.Table:
    """What a worker writes for a shard without failures; see curate/stages/embed/pending.py.

    Of a hundred images one is a copy of the one before it.
    """
    positions = np.arange(SAMPLES_PER_SHARD)
    keys = shard_id * SAMPLES_PER_SHARD + positions
    labels = (shard_id * 7919 + positions * 31) % NUM_CLASSES
    originals = keys - (keys % 100 == 1)
    checksums = (originals.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    integer, text = pa.int64(), pa.string()
    nulls = pa.nulls(SAMPLES_PER_SHARD, text)
    table = pa.table(
        {
            "sample_id": pa.array(first_sample_id(shard_id) + positions, integer),
            "shard_id": pa.array(np.full(SAMPLES_PER_SHARD, shard_id), integer),
            "key": pc.utf8_lpad(pa.array(keys).cast(text), 9, "0"),
            "label": pa.array(labels).cast(text),
            "caption": nulls,
            "byte_offset": pa.array(positions * SAMPLE_BYTES, integer),
            "num_bytes": pa.array(np.full(SAMPLES_PER_SHARD, SAMPLE_BYTES), integer),
            "width": pa.array(np.full(SAMPLES_PER_SHARD, 400), pa.int32()),
            "height": pa.array(np.full(SAMPLES_PER_SHARD, 300), pa.int32()),
            "image_bytes": pa.array(np.full(SAMPLES_PER_SHARD, SAMPLE_BYTES - 1024), integer),
            "image_checksum": pa.array(checksums, pa.uint64()),
            "pixels_checksum": pa.array(checksums, pa.uint64()),
            "member": nulls,
            "stage": nulls,
            "error": nulls,
        }
    )
    metadata = ShardMetadata(
        num_samples=SAMPLES_PER_SHARD,
        num_embedded=SAMPLES_PER_SHARD,
        num_failed=0,
        num_bytes=SAMPLES_PER_SHARD * SAMPLE_BYTES,
        etag="",
        checksum=f"{shard_id:016x}",
        complete=True,
        vectors_checksum=vectors_checksum,
        captions_checksum=None,
    )
    return table.replace_schema_metadata(metadata.to_parquet())


def run_step(name: str, folder: Path, num_shards: int) -> None:
    num_commits = -(-num_shards // SHARDS_PER_COMMIT)
    step = STEPS[name].format(folder=folder, num_commits=num_commits)
    program = PROGRAM.format(folder=folder, step=step, has_workers="workers=" in step)
    command = [sys.executable, "-W", "ignore", "-c", program, name]
    subprocess.run(command, check=True)  # noqa: S603 - our own program


def check_index(folder: Path, num_samples: int) -> None:
    index_rows = pq.ParquetFile(folder / "out" / ".curate" / "index.parquet").metadata.num_rows
    if index_rows != num_samples // 2:
        raise SystemExit(f"the index has {index_rows:,} rows, not {num_samples // 2:,}")


def measure(folder: Path, num_shards: int, numbers: list[int]) -> None:
    if not (folder / "catalog").exists():
        register_corpus(folder, num_shards)
    num_samples = num_shards * SAMPLES_PER_SHARD
    print(f"{num_samples:,} samples in {num_shards:,} shards\n")
    print(
        "| step | time | processor | peak memory | of a worker |\n|---|---|---|---|---|", flush=True
    )
    for number, step in enumerate(STEPS):
        if not numbers or number in numbers:
            run_step(step, folder, num_shards)
            if step == "export --index-only":
                check_index(folder, num_samples)
    size = (folder / "catalog" / "catalog.duckdb").stat().st_size
    print(f"\nthe catalog's database has {size / 2**30:.1f} GiB")


def main(num_shards: int, folder: str | None = None, *numbers: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(folder or temporary).absolute(), num_shards, [int(one) for one in numbers])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, *sys.argv[2:])
