"""`curate cluster` on an embedding that is five times as large as the memory that the process may take, by `ulimit -d`.

10 million rows of 256, 5.1 GB as they lie on the disk in half precision; the limit is 1 GiB.

    python benchmarks/beyond_memory.py        (about 10 minutes and 6 GB of disk)
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from curate import sets, vectors
from curate.catalog import Catalog
from curate.shards import first_sample_id

FILES, A_FILE, DIM, K, LIMIT = 200, 50_000, 256, 1_000, 1 << 30


def build(catalog: Catalog) -> int:
    """An embedding without its corpus; the bytes of its files."""
    generator = np.random.default_rng(0)
    places = generator.standard_normal((K, DIM), np.float32)
    for number in range(FILES):
        rows = generator.standard_normal((A_FILE, DIM), np.float32)
        rows += places[generator.integers(0, K, A_FILE)]
        vectors.write(catalog.vector_file("made", number), first_sample_id(number) + np.arange(A_FILE), rows.astype(np.float16))
    with catalog.writing() as connection:
        sets.insert(connection, "embeddings", {"embedding": "made", "encoder": "none", "weights_sha256": "", "dim": DIM,
                                               "preprocessing": "{}", "label_source": "cls", "run_id": 0})  # fmt: skip
        connection.execute(
            "insert into shards select i, i || '.tar', 1, '', ?, 'x' || i, true from range(?) as t(i)", [A_FILE, FILES]
        )
        connection.execute("insert into embedded_shards select 'made', i, ?, 0, null from range(?) as t(i)", [A_FILE, FILES])
    return sum(path.stat().st_size for path in catalog.embedding_folder("made").iterdir())


def main(folder: Path) -> None:
    size = build(Catalog(folder / "catalog").create())
    begin = time.monotonic()
    words = ["cluster", "--k", str(K), "-c", str(folder / "catalog")]
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "curate", *words],  # noqa: S603 - our own program
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)))  # fmt: skip
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))])
        time.sleep(0.2)
    print(f"{size / 1e9:.1f} GB of vectors, {size / LIMIT:.1f} times the limit of {LIMIT >> 20:,} MiB: "
          f"status {process.returncode}, {time.monotonic() - begin:.0f} s, {peak >> 10:,} MiB of data at most")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
