"""How many bytes a sample the driver's stages take: of the process itself, without its workers.

    python benchmarks/driver_memory.py [SAMPLES [SAMPLES]]

makes two corpora that are not there, by default of one and of five million samples: rows of a
catalog, vectors of one number, scores, the index of an export. Each stage then
runs in a process of its own up to where its workers would begin, and prints the most anonymous
memory that it had (files that are mapped, which the system may drop, are not counted); the line of
each stage has the difference between the corpora by sample. About five minutes and 1 GB of disk.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hundred_million import EMBEDDING, SAMPLES_PER_SHARD, SHARDS_PER_COMMIT, register_corpus

import curate
from curate.catalog.catalog import Catalog
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import write_vectors
from curate.stages.embed.commit import commit_pending

PROGRAM = """
import os, pathlib, sys, threading, time
import curate
from curate.execution import engine

peak = 0
def watch():
    global peak
    while True:
        status = pathlib.Path("/proc/self/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        peak = max(peak, int(fields["RssAnon"].split()[0]) << 10)
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()

def finish(*arguments, **options):
    print(peak, flush=True)
    os._exit(0)

{step}
finish()
"""
STEPS = {
    "probe": """
engine.map_or_raise = finish
curate.probe("{catalog}", model="linear", epochs=1, device="cpu")
""",
    "validate": """
engine.map_or_raise = finish
curate.validate("{catalog}", selections=["half"], model="linear", epochs=1, seeds=4, device="cpu")
""",
    "select --keep 0.5, by label": """
curate.select("{catalog}", keep=0.5, scoring="random", name="again")
""",
    "select --strategy easiest": """
curate.select("{catalog}", keep=0.5, scoring="random", strategy="easiest", name="easy")
""",
    "verify of an export": """
curate.verify("{catalog}", ["{export}"])
""",
}


def make_corpus(folder: Path, num_shards: int) -> None:
    """A catalog with vectors, the scoring 'random', the selection 'half', and its export."""
    catalog = Catalog(folder / "catalog")
    (catalog.path / "embeddings" / EMBEDDING).mkdir(parents=True)
    register_corpus(folder, num_shards)
    pending = catalog.path / "embeddings" / EMBEDDING / "pending"
    for commit in range(-(-num_shards // SHARDS_PER_COMMIT)):
        (folder / "finished" / str(commit)).rename(pending)
        commit_pending(catalog, EMBEDDING)
        pending.rmdir()
    generator = np.random.default_rng(0)
    for shard_id in range(num_shards):
        sample_ids = first_sample_id(shard_id) + np.arange(SAMPLES_PER_SHARD)
        vectors = generator.standard_normal((SAMPLES_PER_SHARD, 1)).astype(np.float16)
        write_vectors(catalog.vector_file(EMBEDDING, shard_id), sample_ids, vectors)
    curate.score(catalog, "random", workers=1)
    curate.select(catalog, keep=0.5, scoring="random", name="half")
    curate.export(catalog, "half", folder / "export", index_only=True)
    add_exported_keys(folder / "export" / ".curate" / "index.parquet")


def add_exported_keys(path: Path) -> None:
    """Make the index that of an export with shards, so that its keys are compared."""
    table = pq.read_table(path)
    shards = pa.array([f"{row // SAMPLES_PER_SHARD:06d}.tar" for row in range(len(table))])
    table = table.append_column("shard", shards).append_column("exported_key", table["key"])
    pq.write_table(table, path, row_group_size=1 << 18)


def measure(step: str, folder: Path) -> int:
    """The most anonymous memory of a step, bytes."""
    program = PROGRAM.format(
        step=STEPS[step].format(catalog=folder / "catalog", export=folder / "export")
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    output = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return int(output.stdout.split()[-1])


def main(sizes: list[int]) -> None:
    peaks: dict[str, list[int]] = {step: [] for step in STEPS}
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            make_corpus(Path(name), size // SAMPLES_PER_SHARD)
            for step in STEPS:
                peaks[step].append(measure(step, Path(name)))
    low, high = sizes
    print(f"| step | {low:,} samples | {high:,} samples | bytes a sample |\n|---|---|---|---|")
    for step, (first, second) in peaks.items():
        per_sample = (second - first) / (high - low)
        print(f"| {step} | {first >> 20} MiB | {second >> 20} MiB | {per_sample:.0f} |")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [1_000_000, 5_000_000])
