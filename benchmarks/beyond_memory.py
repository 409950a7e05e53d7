"""`curate cluster` on an embedding that is five times as large as the memory that the process may take, by `ulimit -d`.

20 million rows of 256, 10.5 GB as they lie on the disk in half precision; the limit is 1,900 MiB. Half of that goes to
libraries, most of it to faiss, which is built for GPUs too; pyarrow's own allocator would reserve another GiB, so it is told
to use malloc.

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

from curate import sets, vectors
from curate.catalog import Catalog
from curate.shards import first_sample_id

FILES, A_FILE, DIM, K, LIMIT = 400, 50_000, 256, 1_000, 1_900 << 20


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
                               env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)))  # fmt: skip
    data = resident = 0  # KiB
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            status = dict(re.findall(r"(VmData|VmHWM):\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()))
            data, resident = max(data, int(status.get("VmData", 0))), max(resident, int(status.get("VmHWM", 0)))
        time.sleep(0.2)
    print(
        f"{size / 1e9:.1f} GB of vectors, {size / LIMIT:.1f} times the limit of {LIMIT >> 20:,} MiB: "
        f"status {process.returncode}, {time.monotonic() - begin:.0f} s; "
        f"at most {data >> 10:,} MiB of data, {resident >> 10:,} MiB resident"
    )
    if process.returncode:
        raise SystemExit("it did not finish")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
