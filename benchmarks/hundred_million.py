"""A hundred million samples that are not there: 10,000 shards of narrow rows, committed, scored,
selected, exported as an index.

What workers of `curate embed` would have left is written first, and not counted; there are no
images and no vectors. Each step is a process of its own, which prints its time and its peak memory;
scores come from two workers, `select` and the rest from the driver alone.

    python benchmarks/hundred_million.py [SHARDS]

About 20 minutes and 20 GB of disk for 10,000 shards.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.formats.sample_ids import first_sample_id, shard_filename
from curate.stages.embed.pending import ShardMetadata

SAMPLES_PER_SHARD, NUM_CLASSES = 10_000, 1_000
SHARDS_PER_COMMIT = 100
SAMPLE_BYTES = 30_720
EMBEDDING = "narrow"
PROGRAM = """
import pathlib, sys, time
from curate.catalog.catalog import Catalog
start = time.monotonic()
{step}
seconds = time.monotonic() - start
status = pathlib.Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(f"| {{sys.argv[1]}} | {{seconds:.0f}} s | {{peak / 2**20:.2f}} GiB |")
"""
STEPS = {
    "commit": """
from curate.stages.embed.commit import commit_pending
pending = pathlib.Path("{folder}/catalog/embeddings/narrow/pending")
for commit in range({num_commits}):
    pathlib.Path("{folder}/finished", str(commit)).rename(pending)
    commit_pending(Catalog("{folder}/catalog"), "narrow")
    pending.rmdir()
""",
    "score random": """
import curate
curate.score("{folder}/catalog", "random", workers=2)
""",
    "select --keep 0.5, by label": """
import curate
curate.select("{folder}/catalog", keep=0.5, scoring="random", name="half")
""",
    "export --index-only": """
import curate
curate.export("{folder}/catalog", "half", "{folder}/out", index_only=True)
""",
}


def register_corpus(folder: Path, num_shards: int) -> None:
    """A catalog whose shards are registered, and what workers have finished for each commit."""
    catalog = Catalog(folder / "catalog").create()
    record = EmbeddingRecord(
        embedding=EMBEDDING,
        encoder="none",
        checkpoint=None,
        weights_sha256="",
        dim=1,
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
        commit = str(shard_id // SHARDS_PER_COMMIT)
        path = folder / "finished" / commit / shard_filename(shard_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_pending_table(shard_id), path)


def make_pending_table(shard_id: int) -> pa.Table:
    """What a worker writes for a shard without failures; see curate/stages/embed/pending.py."""
    positions = range(SAMPLES_PER_SHARD)
    first_id, first_key = first_sample_id(shard_id), shard_id * SAMPLES_PER_SHARD
    labels = [str((shard_id * 7919 + position * 31) % NUM_CLASSES) for position in positions]
    integer, text = pa.int64(), pa.string()
    nulls = pa.nulls(SAMPLES_PER_SHARD, text)
    table = pa.table(
        {
            "sample_id": pa.array([first_id + position for position in positions], integer),
            "shard_id": pa.array([shard_id] * SAMPLES_PER_SHARD, integer),
            "key": pa.array([f"{first_key + position:09d}" for position in positions], text),
            "label": pa.array(labels, text),
            "caption": nulls,
            "byte_offset": pa.array([position * SAMPLE_BYTES for position in positions], integer),
            "num_bytes": pa.array([SAMPLE_BYTES] * SAMPLES_PER_SHARD, integer),
            "width": pa.array([400] * SAMPLES_PER_SHARD, pa.int32()),
            "height": pa.array([300] * SAMPLES_PER_SHARD, pa.int32()),
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
        vectors_checksum="",
        captions_checksum=None,
    )
    return table.replace_schema_metadata(metadata.to_parquet())


def run_step(name: str, folder: Path, num_shards: int) -> None:
    num_commits = -(-num_shards // SHARDS_PER_COMMIT)
    step = STEPS[name].format(folder=folder, num_commits=num_commits)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(step=step), name]
    subprocess.run(command, check=True)  # noqa: S603 - our own program


def main(num_shards: int) -> None:
    num_samples = num_shards * SAMPLES_PER_SHARD
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "catalog" / "embeddings" / EMBEDDING).mkdir(parents=True)
        register_corpus(folder, num_shards)
        print(f"{num_samples:,} samples in {num_shards:,} shards\n")
        print("| step | time | peak memory |\n|---|---|---|", flush=True)
        for step in STEPS:
            run_step(step, folder, num_shards)
        files = [path for path in (folder / "catalog").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        index_rows = pq.ParquetFile(folder / "out" / ".curate" / "index.parquet").metadata.num_rows
        print(f"\ncatalog {size / 2**30:.1f} GiB; {index_rows:,} rows in the index")
        if index_rows != num_samples // 2:
            raise SystemExit(f"the index should have {num_samples // 2:,} rows")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
