"""How many bytes a sample the driver's stages take, without their workers.

    python benchmarks/driver_memory.py [SAMPLES SAMPLES]

makes two corpora that are not there, by default of two and of ten million samples: rows of a
catalog, vectors of 8 numbers, scores, the index of an export. Each stage runs up to where its
workers would begin. Its memory is the most that the process has on top of what it had before:
anonymous memory, without mapped files, which the system may drop. The bytes a sample are the
difference between the corpora. A third, small one goes before, for what libraries take when they
are first used. About five minutes and 2 GB of disk.
"""

import ctypes
import functools
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hundred_million import EMBEDDING, SAMPLES_PER_SHARD, SHARDS_PER_COMMIT, register_corpus

import curate
from curate.catalog.catalog import Catalog
from curate.execution import engine
from curate.stages.embed.commit import commit_pending

_FIRST_SIZE = 100_000
_INTERVAL = 0.01  # seconds between two looks at the memory


class WorkersBegin(Exception):
    """Raised where a stage would start its workers."""


def refuse_to_map(*arguments: Any, **options: Any) -> Iterator[Any]:
    raise WorkersBegin


def list_steps(catalog: Path, export: Path) -> dict[str, Callable[[], Any]]:
    train = {"model": "linear", "epochs": 1, "device": "cpu"}
    return {
        "probe": functools.partial(curate.probe, catalog, **train),
        "validate": functools.partial(curate.validate, catalog, ["half"], seeds=4, **train),
        "select --keep 0.5": functools.partial(
            curate.select, catalog, keep=0.5, scoring="random", name="again"
        ),
        "select --strategy easiest": functools.partial(
            curate.select, catalog, keep=0.5, scoring="random", strategy="easiest", name="easy"
        ),
        "verify of an export": functools.partial(curate.verify, catalog, [export]),
    }


def make_corpus(folder: Path, num_shards: int) -> None:
    """A catalog with vectors, the scoring 'random', the selection 'half', and its export."""
    catalog = Catalog(folder / "catalog")
    register_corpus(folder, num_shards)
    pending = catalog.path / "embeddings" / EMBEDDING / "pending"
    for commit in range(-(-num_shards // SHARDS_PER_COMMIT)):
        (folder / "finished" / str(commit)).rename(pending)
        commit_pending(catalog, EMBEDDING)
        pending.rmdir()
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


def read_memory() -> int:
    """The anonymous memory of this process, bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


def measure(step: Callable[[], Any]) -> int:
    """The most anonymous memory that a step takes, bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, has_ended = read_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not has_ended.is_set():
            peak = max(peak, read_memory())
            time.sleep(_INTERVAL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    original = engine.map_or_raise
    engine.map_or_raise = refuse_to_map
    try:
        step()
    except WorkersBegin:
        pass
    finally:
        engine.map_or_raise = original
        has_ended.set()
        watcher.join()
    return peak - before


def main(sizes: list[int]) -> None:
    peaks: dict[str, list[int]] = {}
    for size in (_FIRST_SIZE, *sizes):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_corpus(folder, size // SAMPLES_PER_SHARD)
            for step, function in list_steps(folder / "catalog", folder / "export").items():
                peak = measure(function)
                print(f"{size:,} samples, {step}: {peak >> 20} MiB", file=sys.stderr)
                if size != _FIRST_SIZE:
                    peaks.setdefault(step, []).append(peak)
    low, high = sizes
    print(f"| step | {low:,} samples | {high:,} samples | bytes a sample |\n|---|---|---|---|")
    for step, (first, second) in peaks.items():
        per_sample = (second - first) / (high - low)
        print(f"| {step} | {first >> 20} MiB | {second >> 20} MiB | {per_sample:.0f} |")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [2_000_000, 10_000_000])
