"""A hundred million samples that are not there: 10,000 shards of thin rows, committed, scored, selected, exported as an index.

What workers of `curate embed` would have left is written first, and not counted; there are no images and no vectors. Each
step is a process of its own, which tells its time and its peak memory; scores come from two workers, `select` and the rest
from the driver alone.

    python benchmarks/hundred_million.py [SHARDS]        (about 20 minutes and 20 GB of disk for 10,000)
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate import sets
from curate.catalog import Catalog

A_SHARD, CLASSES, AT_ONCE = 10_000, 1_000, 100  # samples, labels, shards that are finished between two commits
TELL = """
import pathlib, sys, time
from curate.catalog import Catalog
begin = time.monotonic()
{program}
status = pathlib.Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(f"| {{sys.argv[1]}} | {{time.monotonic() - begin:.0f}} s | {{peak / 2**20:.2f}} GiB |")
"""
STEPS = {
    "commit": "from curate import corpus\nfor number in {groups}:\n"
    "    pathlib.Path('{folder}/finished/' + str(number)).rename('{folder}/catalog/embeddings/thin/pending')\n"
    "    corpus.commit_pending(Catalog('{folder}/catalog'), 'thin')\n"
    "    pathlib.Path('{folder}/catalog/embeddings/thin/pending').rmdir()",
    "score random": "import curate\ncurate.score('{folder}/catalog', 'random', workers=2)",
    "select --keep 0.5, by label": "import curate\ncurate.select('{folder}/catalog', keep=0.5, scoring='random', name='half')",
    "export --index-only": "import curate\ncurate.export('{folder}/catalog', 'half', '{folder}/out', index_only=True)",
}


def begin(folder: Path, count: int) -> None:
    """A catalog with shards that are registered, and their workers' files in groups that were finished together."""
    catalog = Catalog(folder / "catalog").create()
    with catalog.writing() as connection:
        sets.insert(connection, "embeddings", {"embedding": "thin", "encoder": "none", "weights_sha256": "", "dim": 1,
                                               "preprocessing": "{}", "label_source": "cls", "run_id": 0})  # fmt: skip
        connection.execute(
            "insert into shards (shard_id, url, num_bytes, version) "
            "select i, format('/corpus/{:06d}.tar', i), 300000000, '' from range(?) as t(i)",
            [count],
        )
    text, whole = pa.string(), pa.int64()
    nothing = pa.nulls(A_SHARD, text)
    for shard_id in range(count):
        path = folder / "finished" / str(shard_id // AT_ONCE) / f"{shard_id:08d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        positions = range(A_SHARD)
        table = pa.table({
            "sample_id": pa.array([shard_id << 24 | place for place in positions], whole),
            "shard_id": pa.array([shard_id] * A_SHARD, whole),
            "key": pa.array([f"{shard_id * A_SHARD + place:09d}" for place in positions], text),
            "label": pa.array([str((shard_id * 7919 + place * 31) % CLASSES) for place in positions], text),
            "caption": nothing, "byte_offset": pa.array([place * 30_720 for place in positions], whole),
            "num_bytes": pa.array([30_720] * A_SHARD, whole), "width": pa.array([400] * A_SHARD, pa.int32()),
            "height": pa.array([300] * A_SHARD, pa.int32()), "member": nothing, "stage": nothing, "error": nothing,
        })  # fmt: skip
        facts = {"num_samples": str(A_SHARD), "num_embedded": str(A_SHARD), "num_failed": "0", "num_bytes": "307200000",
                 "version": "", "fingerprint": f"{shard_id:016x}", "complete": "yes", "vectors": ""}  # fmt: skip
        pq.write_table(table.replace_schema_metadata(facts), path)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "catalog/embeddings/thin").mkdir(parents=True)
        begin(folder, count)
        print(f"{count * A_SHARD:,} samples in {count:,} shards\n\n| step | time | peak memory |\n|---|---|---|", flush=True)
        for step, program in STEPS.items():
            program = program.format(folder=folder, groups=range(-(-count // AT_ONCE)))
            subprocess.run([sys.executable, "-W", "ignore", "-c", TELL.format(program=program), step], check=True)  # noqa: S603 - our own program
        size = sum(path.stat().st_size for path in (folder / "catalog").rglob("*") if path.is_file())
        index = pq.ParquetFile(folder / "out/index.parquet").metadata.num_rows
        print(f"\ncatalog {size / 2**30:.1f} GiB; {index:,} rows in the index")
        if index != count * A_SHARD // 2:
            raise SystemExit("the index is not what was asked for")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
