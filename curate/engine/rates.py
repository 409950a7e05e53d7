"""How fast this machine does each kind of work, measured in some seconds on a sample of the corpus, for `curate plan`."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate import distances, images, shards, vectors
from curate.engine import inference
from curate.errors import CurateError
from curate.images import ImageError
from curate.shards import DamagedShard
from curate.strategies import balance
from curate.tar import TarReader

_IMAGES, _SHARDS = 64, 4  # the sample: so many images in all, from so many shards that lie apart
_SECONDS = 1.0  # each measurement takes about so long
_ROWS = 1 << 16


@dataclass(frozen=True)
class Sample:
    """Images of the corpus, and what a sample takes in its shard, in bytes, on average."""

    images: list[bytes]
    num_bytes: float


def sample(urls: list[str]) -> Sample:
    """Some images from the beginnings of some shards. Raises CurateError where there are none."""
    chosen = urls[:: max(len(urls) // _SHARDS, 1)][:_SHARDS]
    found: list[bytes] = []
    lengths: list[int] = []
    for url in chosen:
        try:
            with shards.open_shard(url) as stream:
                for one in itertools.islice(shards.samples(TarReader(stream)), _IMAGES // len(chosen)):
                    kind = images.image_kind(one.members)
                    lengths.append(one.length)
                    found += [one.members[kind]] if kind else []
        except (OSError, DamagedShard):  # `curate embed` will say what is wrong with it
            continue
    if not found:
        raise CurateError(f"no images in the first samples of {len(chosen)} shards, such as '{urls[0]}': is this a corpus?")
    return Sample(found, float(np.mean(lengths)))


def embedding(model: inference.Model, found: Sample) -> tuple[float, int]:
    """Seconds an image for one worker, decoding and encoding; and the dimension of the vectors."""
    forward = inference.load(model)
    dim = 0

    def work() -> int:
        nonlocal dim
        pixels = [decoded.pixels for decoded in _decoded(found.images, model)]
        if not pixels:
            raise CurateError("none of the first images of the corpus can be decoded: see what `curate embed` says of a shard")
        for start in range(0, len(pixels), 8):
            dim = forward(np.stack(pixels[start : start + 8])).shape[1]
        return len(pixels)

    return _each(work), dim


def _decoded(files: list[bytes], model: inference.Model) -> Iterator[images.Decoded]:
    for file in files:
        try:
            yield images.decode(file, model.preprocessing)
        except ImageError:
            continue


def assigning(dim: int, k: int) -> float:
    """Seconds a row to find the nearest of k centroids, with all cores."""
    generator = np.random.default_rng(0)
    centroids = distances.unit(generator.standard_normal((k, dim), np.float32))
    count = min(max((1 << 33) // (dim * k), 64), _ROWS)  # some 10 to 100 ms
    rows = distances.unit(generator.standard_normal((count, dim), np.float32))

    def work() -> int:
        distances.nearest(rows, centroids, "cosine")
        return len(rows)

    return _each(work)


def reading(dim: int, folder: Path) -> float:
    """Seconds a row to read vectors from Parquet."""
    file = folder / "vectors.parquet"
    vectors.write(file, np.arange(_ROWS // 4), np.zeros((_ROWS // 4, dim), np.float16))
    return _each(lambda: len(vectors.read(file).sample_ids))


def choosing() -> float:
    """Seconds a candidate to select half of a corpus in a hundred classes."""
    generator = np.random.default_rng(0)
    groups, scores = generator.integers(0, 100, _ROWS), generator.random(_ROWS)
    floors = balance.floors(np.bincount(groups), 0.5, 0.5)

    def work() -> int:
        balance.drawn(groups.astype(np.int32), scores, np.arange(_ROWS), floors, _ROWS // 2, 0)
        return _ROWS

    return _each(work)


def committing(folder: Path) -> float:
    """Seconds a row to bring samples into a DuckDB table."""
    import duckdb

    with duckdb.connect(str(folder / "commit.duckdb")) as connection:
        connection.execute("create table samples (sample_id bigint, key text, byte_offset bigint, num_bytes bigint)")

        def work() -> int:
            connection.execute("insert into samples select i, i::text, i * 512, 512 from range(?) as t(i)", [8 * _ROWS])
            return 8 * _ROWS

        return _each(work)


def copying(folder: Path) -> float:
    """Seconds a byte to write to the disk and have it there."""
    block = os.urandom(16 << 20)

    def work() -> int:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return len(block)

    return _each(work)


def _each(work: Callable[[], int]) -> float:
    """Seconds for each of what the work says that it did; once to warm up, then for about a second."""
    work()
    begin, done = time.perf_counter(), 0
    while True:
        done += work()
        spent = time.perf_counter() - begin
        if spent > _SECONDS:
            return spent / done
