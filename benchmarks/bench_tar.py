"""Reading a tar, headers verified: against webdataset's reader and the bytes alone."""

import io
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from harness import Row, timed

from curate import shards
from curate.tar import TarReader


def write(path: Path, size: int, count: int) -> None:
    """So many samples of an image of about `size` bytes and a label."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for kind, length in (("jpg", int(size * generator.uniform(0.8, 1.2))), ("cls", 1)):
                member = tarfile.TarInfo(f"{number:08d}.{kind}")
                member.size = length
                tar.addfile(member, io.BytesIO(generator.bytes(length)))


def ours(path: Path) -> None:
    with shards.open_shard(str(path)) as stream:
        for _ in TarReader(stream):
            pass


def webdataset_reader(path: Path) -> None:
    from webdataset.tariterators import tar_file_iterator

    with path.open("rb") as stream:
        for _ in tar_file_iterator(stream):
            pass


def bytes_alone(path: Path) -> None:
    with path.open("rb") as stream:
        while stream.read(1 << 20):
            pass


def measure() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, count, least in ((30_000, 3_000, 4.0), (1_000, 20_000, 6.0)):
            path = Path(folder) / f"{size}.tar"
            write(path, size, count)
            variants = {
                "ours": partial(ours, path),
                "peer": partial(webdataset_reader, path),
                "limit": partial(bytes_alone, path),
            }
            found = timed(variants, cpu=True)
            rows.append(Row(f"read tar, members of {size // 1000} KB", **found, peer_name="webdataset", least_of_peer=least))
    return rows
