"""Requests and bytes of curate.stream from a store that speaks S3, on this machine.

python benchmarks/stream_store.py [FOLDER OF SHARDS]
"""

import sys
import tempfile
from pathlib import Path

import pytest
from bench_stream import DATA, KEEPS, make_selection

import curate

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "streaming"))
from range_store import serve_bucket  # the store of the tests


def main() -> None:
    corpus = Path(sys.argv[1] if len(sys.argv) > 1 else DATA / "clothing").resolve()
    shards = sorted(map(str, corpus.glob("*-train-*.tar")))
    corpus_bytes = sum(Path(shard).stat().st_size for shard in shards)
    print("| keep | samples | of the corpus | requests | MB read | of the kept bytes |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        curate.embed(folder / "catalog", shards, encoder="pixels@8", workers=1)
        with serve_bucket(corpus, patch) as store:
            for keep in (*KEEPS, 1.0):
                selected = make_selection(folder / "catalog", folder, keep)
                stream = curate.stream(
                    selected.index, shuffle=1000, root={"s3://corpus/": f"{corpus}/"}
                )
                store.num_requests = store.num_bytes = 0
                count = sum(1 for _ in stream)
                cells = (
                    f"{keep:g}",
                    f"{count:,}",
                    f"{stream.num_kept_bytes / corpus_bytes:.3f}",
                    f"{store.num_requests:,}",
                    f"{store.num_bytes / 1e6:.1f}",
                    f"{store.num_bytes / stream.num_kept_bytes:.3f}",
                )
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
