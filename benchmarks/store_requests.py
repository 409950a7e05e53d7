"""How many requests commands send to an object store, for each shard of the corpus.

    python benchmarks/store_requests.py [SHARDS]

An S3-compatible server in this process counts them, for 40 shards of three small images by default:
with more, what does not grow with the corpus counts for less. A shard of more than 8 MB is read in
as many requests as it has 8 MB. About a minute.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.storage import files

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import write_corpus  # the corpus and the store of the tests
from counting_store import CountingServer, serve_counting_store

PER_SHARD = 3


def measure(store: CountingServer, folder: Path, num_shards: int, files_url: str | None) -> None:
    where = files_url.replace("://", "-").replace("/", "-") if files_url else "here"
    catalog, out = folder / where, f"s3://out/{where}"
    pattern = f"s3://corpus/{{{0:04d}..{num_shards - 1:04d}}}.tar"

    def count(command: str, verb: Callable[..., object], *arguments: Any, **options: Any) -> None:
        with store.count() as counts:
            verb(catalog, *arguments, **options)
        cells = [sum(counts.values()) / num_shards]
        cells += [
            sum(number for name, number in counts.items() if name.startswith(kind)) / num_shards
            for kind in ("GET", "HEAD", "LIST", "PUT")
        ]
        shown = " | ".join(f"{cell:.2f}" for cell in cells)
        print(f"| {command} | {shown} |", flush=True)

    print(f"\n{num_shards} shards; vectors {f'in {files_url}' if files_url else 'here'}\n")
    print("| command | requests a shard | GET | HEAD | LIST | PUT |\n|---|---|---|---|---|---|")
    encoder = {"encoder": "pixels@8", "workers": 1}
    count("embed", curate.embed, pattern, files=files_url, **encoder)
    count("embed, nothing to do", curate.embed, pattern, **encoder)
    count("cluster", curate.cluster, k=3)
    curate.score(catalog, "random")
    curate.select(catalog, keep=0.5, scoring="random", name="half")
    count("export", curate.export, "half", out)
    count("export, nothing to do", curate.export, "half", out)
    count("verify", curate.verify)
    half = f"s3://corpus/{{{0:04d}..{num_shards // 2 - 1:04d}}}.tar"
    count("remove shards, half of them", curate.remove, "shards", half, force=True)
    count("remove embedding", curate.remove, "embedding", "pixels@8", force=True)


def main(num_shards: int) -> None:
    buckets = ["corpus", "files", "out"]
    with (
        tempfile.TemporaryDirectory() as name,
        pytest.MonkeyPatch.context() as patch,
        serve_counting_store(buckets, patch) as store,
    ):
        folder = Path(name)
        for number, path in enumerate(write_corpus(folder / "corpus", num_shards, PER_SHARD)):
            files.upload(Path(path), f"s3://corpus/{number:04d}.tar")
        for files_url in (None, "s3://files/vectors"):
            measure(store, folder, num_shards, files_url)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
