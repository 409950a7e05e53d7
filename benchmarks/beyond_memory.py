"""`curate cluster` on an embedding that is five times as large as the memory that the process may
take, by `ulimit -d`.

20 million rows of 256, 10.5 GB as they lie on the disk in half precision; the limit is 1,900 MiB.
Half of that goes to libraries, most of it to faiss, which is built for GPUs too; pyarrow's own
allocator would reserve another GiB, so malloc is used instead.

    python benchmarks/beyond_memory.py        (about 10 minutes and 11 GB of disk)
"""

import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from made_up import insert_embedding

from curate.catalog.catalog import Catalog
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import write_vectors

NUM_FILES, ROWS_PER_FILE, DIM, K = 400, 50_000, 256, 1_000
LIMIT = 1_900 << 20  # bytes
EMBEDDING = "random"


def build_embedding(catalog: Catalog) -> int:
    """An embedding without its corpus; returns the bytes of its files."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((K, DIM), np.float32)
    for shard_id in range(NUM_FILES):
        rows = generator.standard_normal((ROWS_PER_FILE, DIM), np.float32)
        rows += centers[generator.integers(0, K, ROWS_PER_FILE)]
        write_vectors(
            catalog.vector_file(EMBEDDING, shard_id),
            first_sample_id(shard_id) + np.arange(ROWS_PER_FILE),
            rows.astype(np.float16),
        )
    with catalog.writing() as connection:
        insert_embedding(connection, EMBEDDING, DIM, NUM_FILES, ROWS_PER_FILE)
    folder = Path(catalog.embedding_folder(EMBEDDING))
    return sum(path.stat().st_size for path in folder.iterdir())


def read_memory(pid: int) -> dict[str, int]:
    """VmData and VmHWM of a process in KiB; empty when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{pid}/status").read_text()
        return {name: int(size) for name, size in re.findall(r"(VmData|VmHWM):\s+(\d+)", status)}
    return {}


def main(folder: Path) -> None:
    size = build_embedding(Catalog(folder / "catalog").create())
    start = time.monotonic()
    arguments = ["cluster", "--k", str(K), "-c", str(folder / "catalog")]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-W", "ignore", "-m", "curate", *arguments],
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )
    data = resident = 0  # KiB
    while process.poll() is None:
        memory = read_memory(process.pid)
        data = max(data, memory.get("VmData", 0))
        resident = max(resident, memory.get("VmHWM", 0))
        time.sleep(0.2)
    print(
        f"{size / 1e9:.1f} GB of vectors, "
        f"{size / LIMIT:.1f} times the limit of {LIMIT >> 20:,} MiB: "
        f"status {process.returncode}, {time.monotonic() - start:.0f} s; "
        f"at most {data >> 10:,} MiB of data, {resident >> 10:,} MiB resident"
    )
    if process.returncode:
        raise SystemExit("`curate cluster` failed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
