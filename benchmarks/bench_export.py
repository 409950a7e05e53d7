"""Writing pruned shards from 1 GB of 30 KB members: against a full copy of the input, tarfile,
webdataset's writer, and a copy by an index of byte ranges as people write it who have one: the
system copies each range from file to file (sendfile), and nothing is checked.
"""

import os
import shutil
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_tar import write_random_shard
from harness import Row, time_variants

from curate.formats.samples import iterate_samples
from curate.formats.tar import TarReader
from curate.stages.export.worker import OutputShard, SourceRange, SourceShard, WriteShard
from curate.storage import files

NUM_SHARDS, SAMPLES_PER_SHARD = 10, 3_200
END_OF_ARCHIVE = 1_024  # bytes of zeros


class ByteRanges(NamedTuple):
    """Where the samples of a shard lie, as the catalog has them: int64 [n] each."""

    offsets: np.ndarray
    lengths: np.ndarray


Kept = dict[Path, np.ndarray]  # the sorted positions of the samples to keep, by shard


def read_byte_ranges(path: Path) -> ByteRanges:
    with path.open("rb") as stream:
        rows = [(sample.offset, sample.length) for sample in iterate_samples(TarReader(stream))]
    return ByteRanges(*np.array(rows, np.int64).T)


def export_by_curate(kept: Kept, byte_ranges: dict[Path, ByteRanges], out: Path) -> None:
    for path, positions in kept.items():
        stat = files.stat(str(path))
        source = SourceShard(str(path), stat.num_bytes, stat.etag, "")
        offsets, lengths = (column[positions] for column in byte_ranges[path])
        source_range = SourceRange(source, offsets, lengths, {})
        WriteShard(str(out))(OutputShard(path.name, [source_range]))
        (out / path.name).unlink()


def copy_ranges(kept: Kept, byte_ranges: dict[Path, ByteRanges], out: Path) -> None:
    for path, positions in kept.items():
        offsets, lengths = (column[positions] for column in byte_ranges[path])
        with path.open("rb") as source, (out / path.name).open("wb", buffering=0) as target:
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                while length:
                    count = os.sendfile(target.fileno(), source.fileno(), offset, length)
                    offset, length = offset + count, length - count
            target.write(bytes(END_OF_ARCHIVE))
        (out / path.name).unlink()


def copy_all(shards: list[Path], out: Path) -> None:
    """Read and write every byte; not the file system's own clones."""
    for path in shards:
        with path.open("rb") as source, (out / path.name).open("wb") as target:
            shutil.copyfileobj(source, target, 8 << 20)
        (out / path.name).unlink()


def sample_keys(positions: np.ndarray) -> set[str]:
    return {f"{position:08d}" for position in positions}


def export_by_tarfile(kept: Kept, out: Path) -> None:
    for path, positions in kept.items():
        keys = sample_keys(positions)
        with tarfile.open(path) as source, tarfile.open(out / path.name, "w") as target:
            for member in source:
                if member.name.partition(".")[0] in keys:
                    target.addfile(member, source.extractfile(member))
        (out / path.name).unlink()


def export_by_webdataset(kept: Kept, out: Path) -> None:
    import webdataset

    for path, positions in kept.items():
        keys = sample_keys(positions)
        with webdataset.TarWriter(str(out / path.name)) as target:
            for sample in webdataset.WebDataset(str(path), shardshuffle=False):
                if sample["__key__"] in keys:
                    target.write(
                        {
                            name: value
                            for name, value in sample.items()
                            if name not in ("__url__", "__local_path__")
                        }
                    )
        (out / path.name).unlink()


def measure() -> list[Row]:
    rows = []
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = [folder / f"{number:03d}.tar" for number in range(NUM_SHARDS)]
        for path in shards:
            write_random_shard(path, 30_000, SAMPLES_PER_SHARD)
        byte_ranges = {path: read_byte_ranges(path) for path in shards}
        out = folder / "out"
        out.mkdir()
        for keep, target in ((0.8, 0.4), (0.2, None)):
            num_kept = round(keep * SAMPLES_PER_SHARD)
            kept = {
                path: np.sort(generator.permutation(SAMPLES_PER_SHARD)[:num_kept])
                for path in shards
            }
            seconds = time_variants(
                {
                    "ours": partial(export_by_curate, kept, byte_ranges, out),
                    "limit": partial(copy_all, shards, out),
                    "tarfile": partial(export_by_tarfile, kept, out),
                    "webdataset": partial(export_by_webdataset, kept, out),
                    "indexed": partial(copy_ranges, kept, byte_ranges, out),
                }
            )
            rows += [
                Row(
                    f"export, keep {keep:g}",
                    seconds["ours"],
                    # As rates of what is written: the copy writes everything.
                    limit=keep * seconds["limit"],
                    peer=seconds["tarfile"],
                    peer_name="tarfile",
                    least_of_limit=target,
                    least_of_peer=4.0,
                ),
                Row(
                    f"export, keep {keep:g}, webdataset",
                    seconds["ours"],
                    peer=seconds["webdataset"],
                    peer_name="webdataset's writer",
                    least_of_peer=6.0,
                ),
                Row(
                    f"export, keep {keep:g}, indexed copy",
                    seconds["ours"],
                    peer=seconds["indexed"],
                    peer_name="an indexed copy, unchecked",
                ),
            ]
    return rows
