"""Time and memory of `density` and `target_similarity` on 1,000,000 made-up rows of 512 numbers.

    python benchmarks/score_million.py                  (an hour on two cores, 1.1 GB of disk)
    python benchmarks/score_million.py --scored 8192    (the same memory; the time is estimated)

Everything but the scores of the other rows is done with `--scored` too: what is compared with is
drawn from all of the corpus, and the target set is as large.
"""

import argparse
import inspect
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from made_up import insert_embedding

from curate.catalog.catalog import Catalog
from curate.distances import l2_normalize
from curate.formats.sample_ids import first_sample_id
from curate.formats.vectors import ShardVectors, iterate_vectors, write_vectors
from curate.metrics import metrics
from curate.stages.inputs.corpus import CorpusInputs

NUM_SHARDS, ROWS_PER_SHARD, DIM, NUM_TARGETS = 100, 10_000, 512, 10_000
EMBEDDING = "random"
BLOCK_ROWS = 1024  # as workers score them


def build_catalog(catalog: Catalog) -> None:
    """A catalog with vectors around 1,000 centers, and no shards behind them."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((1000, DIM), np.float32)
    for shard_id in range(NUM_SHARDS):
        rows = generator.standard_normal((ROWS_PER_SHARD, DIM), np.float32)
        rows += centers[generator.integers(0, len(centers), ROWS_PER_SHARD)]
        ids = first_sample_id(shard_id) + np.arange(ROWS_PER_SHARD)
        write_vectors(catalog.vector_file(EMBEDDING, shard_id), ids, rows.astype(np.float16))
    with catalog.writing() as connection:
        insert_embedding(connection, EMBEDDING, DIM, NUM_SHARDS, ROWS_PER_SHARD)
        connection.execute(
            "insert into samples (sample_id, shard_id, key, byte_offset, num_bytes) "
            "select (s << 24) | p, s, p::text, 0, 1 from range(?) as a(s), range(?) as b(p)",
            [NUM_SHARDS, ROWS_PER_SHARD],
        )


def iterate_blocks(catalog: Catalog) -> Iterator[ShardVectors]:
    for file in catalog.vector_files(EMBEDDING):
        for batch in iterate_vectors(file, BLOCK_ROWS):
            yield batch._replace(vectors=l2_normalize(batch.vectors))


def measure(metric: str, catalog: Catalog, num_scored: int) -> None:
    """Score so many rows by a metric, and print seconds and the peak of this process's memory."""
    parameters = inspect.signature(metrics[metric]).parameters
    inputs = CorpusInputs(
        catalog, f"the metric '{metric}'", parameters, EMBEDDING, None, None, "cosine", 0, None
    )
    started = time.process_time()
    if metric == "density":
        references = inputs.references
        arguments = {
            "reference_vectors": references.vectors,
            "reference_ids": references.sample_ids,
            "distance": "cosine",
        }
    else:
        blocks = iterate_blocks(catalog)
        parts = [b.vectors for b in itertools.islice(blocks, -(-NUM_TARGETS // BLOCK_ROWS))]
        arguments = {"target_vectors": np.concatenate(parts)[:NUM_TARGETS]}
    prepared = time.process_time() - started
    started, num_done = time.process_time(), 0
    for ids, vectors in iterate_blocks(catalog):
        if num_done >= num_scored:
            break
        own = {"sample_ids": ids} if metric == "density" else {}
        metrics[metric](vectors, **own, **arguments)
        num_done += len(ids)
    seconds = time.process_time() - started
    total = NUM_SHARDS * ROWS_PER_SHARD
    status = Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 2**20
    print(
        f"{metric}: {prepared:.1f} s of CPU to prepare, {1000 * seconds / num_done:.2f} ms a row, "
        f"so {(prepared + seconds / num_done * total) / 60:.0f} minutes for {total:,} rows on one "
        f"core; {num_done:,} were scored; at most {peak:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--scored", type=int, default=NUM_SHARDS * ROWS_PER_SHARD)
    parser.add_argument("--measure", nargs=2, metavar=("METRIC", "CATALOG"))
    arguments = parser.parse_args()
    if arguments.measure:
        metric, folder = arguments.measure
        measure(metric, Catalog(folder), arguments.scored)
        return
    with tempfile.TemporaryDirectory() as folder:
        build_catalog(Catalog(folder).create())
        for metric in ("density", "target_similarity"):
            command = [sys.executable, __file__, "--scored", str(arguments.scored)]
            subprocess.run([*command, "--measure", metric, folder], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
