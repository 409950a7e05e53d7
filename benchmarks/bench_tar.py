"""Reading a tar, headers verified: against webdataset's reader and the bytes alone."""

import io
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from harness import Row, time_variants

from curate.formats.tar import TarReader
from curate.storage.files import open_binary


def write_random_shard(path: Path, image_bytes: int, num_samples: int) -> None:
    """So many samples: an image of about `image_bytes` random bytes, and a label."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(num_samples):
            image_length = int(image_bytes * generator.uniform(0.8, 1.2))
            for extension, length in (("jpg", image_length), ("cls", 1)):
                member = tarfile.TarInfo(f"{number:08d}.{extension}")
                member.size = length
                tar.addfile(member, io.BytesIO(generator.bytes(length)))


def read_by_curate(path: Path) -> None:
    with open_binary(str(path), sequential=True) as stream:
        for _ in TarReader(stream):
            pass


def read_by_webdataset(path: Path) -> None:
    from webdataset.tariterators import tar_file_iterator

    with path.open("rb") as stream:
        for _ in tar_file_iterator(stream):
            pass


def read_bytes(path: Path) -> None:
    with path.open("rb") as stream:
        while stream.read(1 << 20):
            pass


def measure() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for image_bytes, num_samples, target in ((30_000, 3_000, 4.0), (1_000, 20_000, 6.0)):
            path = Path(folder) / f"{image_bytes}.tar"
            write_random_shard(path, image_bytes, num_samples)
            variants = {
                "ours": partial(read_by_curate, path),
                "peer": partial(read_by_webdataset, path),
                "limit": partial(read_bytes, path),
            }
            rows.append(
                Row(
                    f"read tar, members of {image_bytes // 1000} KB",
                    **time_variants(variants, cpu_time=True),
                    peer_name="webdataset",
                    least_of_peer=target,
                )
            )
    return rows
