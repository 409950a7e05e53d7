"""How fast this machine does each kind of work, measured in seconds on a sample of the corpus."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.distances import l2_normalize
from curate.errors import CurateError
from curate.formats.images import (
    DecodedImage,
    ImageDecodeError,
    Preprocessing,
    decode_image,
)
from curate.formats.member_roles import MemberRoles
from curate.formats.samples import CorruptShardError, iterate_samples
from curate.formats.tar import TarReader
from curate.formats.vectors import read_vectors, write_vectors
from curate.stages.cluster import two_levels
from curate.stages.cluster.kmeans import choose_assignment
from curate.stages.embed.inference import EncoderPlan, load_forward
from curate.stages.select.quotas import group_quotas, select_with_quotas
from curate.storage.files import open_binary

_SAMPLE_IMAGES, _SAMPLE_SHARDS = 64, 4  # so many images in all, from so many shards far apart
_SECONDS = 1.0  # each measurement takes about so long
_ROWS = 1 << 16
_TWO_LEVEL_ROWS = 1 << 12


@dataclass(frozen=True)
class ImageSample:
    """Images of the corpus, and the mean bytes of a sample in its shard."""

    images: list[bytes]
    bytes_per_sample: float


def sample_images(urls: list[str]) -> ImageSample:
    """Some images from the beginnings of some shards. Raises CurateError where there are none."""
    step = max(len(urls) // _SAMPLE_SHARDS, 1)
    sampled_urls = urls[::step][:_SAMPLE_SHARDS]
    images: list[bytes] = []
    lengths: list[int] = []
    for url in sampled_urls:
        try:
            with open_binary(url, sequential=True) as stream:
                samples = iterate_samples(TarReader(stream))
                for sample in itertools.islice(samples, _SAMPLE_IMAGES // len(sampled_urls)):
                    lengths.append(sample.length)
                    extension = MemberRoles().choose_image(sample.members).extension
                    if extension:
                        images.append(sample.members[extension])
        except (OSError, CorruptShardError):  # `curate embed` will say what is wrong with it
            continue
    if not images:
        raise CurateError(
            f"no images in the first samples of {len(sampled_urls)} shards, such as '{urls[0]}': "
            "is this a corpus?"
        )
    return ImageSample(images, float(np.mean(lengths)))


def measure_embedding(plan: EncoderPlan, sample: ImageSample) -> tuple[float, int]:
    """Seconds per image for one worker, decoding and encoding; and the length of the vectors."""
    forward = load_forward(plan)
    dim = 0

    def work() -> int:
        nonlocal dim
        images = [image.rgbx for image in _decode_all(sample.images, plan.preprocessing)]
        if not images:
            raise CurateError(
                "none of the first images of the corpus can be decoded: "
                "see what `curate embed` says of a shard"
            )
        for start in range(0, len(images), 8):
            dim = forward(images[start : start + 8]).shape[1]
        return len(images)

    return _seconds_per_unit(work), dim


def _decode_all(images: list[bytes], preprocessing: Preprocessing) -> Iterator[DecodedImage]:
    for data in images:
        try:
            yield decode_image(data, preprocessing)
        except ImageDecodeError:
            continue


def measure_assignment(dim: int, k: int) -> float:
    """Seconds per row to assign it to one of k centroids, with all cores."""
    generator = np.random.default_rng(0)
    centroids = l2_normalize(generator.standard_normal((k, dim), np.float32))
    # Some 10 to 100 ms; in two levels a few rows would be slower than many.
    least = _TWO_LEVEL_ROWS if k >= two_levels.MIN_CENTROIDS else 64
    num_rows = min(max((1 << 33) // (dim * k), least), _ROWS)
    rows = l2_normalize(generator.standard_normal((num_rows, dim), np.float32))
    assign = choose_assignment(centroids, "cosine")

    def work() -> int:
        return sum(len(tile) for tile, _ in assign(rows))

    return _seconds_per_unit(work)


def measure_vector_reading(dim: int, folder: Path) -> float:
    """Seconds per row to read vectors from Parquet."""
    file = str(folder / "vectors.parquet")
    num_rows = _ROWS // 4
    write_vectors(file, np.arange(num_rows), np.zeros((num_rows, dim), np.float16))
    return _seconds_per_unit(lambda: len(read_vectors(file).sample_ids))


def measure_selection() -> float:
    """Seconds per candidate to select half of a corpus in a hundred classes."""
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 100, _ROWS)
    scores = generator.random(_ROWS)
    quotas = group_quotas(np.bincount(groups), 0.5, 0.5)

    def work() -> int:
        sample_ids = np.arange(_ROWS)
        select_with_quotas(groups.astype(np.int32), scores, sample_ids, quotas, _ROWS // 2, 0)
        return _ROWS

    return _seconds_per_unit(work)


def measure_commit(folder: Path) -> float:
    """Seconds per row to insert samples into a DuckDB table."""
    import duckdb

    with duckdb.connect(str(folder / "commit.duckdb")) as connection:
        connection.execute(
            "create table samples "
            "(sample_id bigint, key text, byte_offset bigint, num_bytes bigint)"
        )

        def work() -> int:
            connection.execute(
                "insert into samples select i, i::text, i * 512, 512 from range(?) as t(i)",
                [8 * _ROWS],
            )
            return 8 * _ROWS

        return _seconds_per_unit(work)


def measure_disk_writes(folder: Path) -> float:
    """Seconds a byte to write to the disk and sync."""
    block = os.urandom(16 << 20)

    def work() -> int:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return len(block)

    return _seconds_per_unit(work)


def _seconds_per_unit(work: Callable[[], int]) -> float:
    """Seconds a unit of work; `work` returns how many units it did. It is warmed up once."""
    work()
    started, units = time.perf_counter(), 0
    while True:
        units += work()
        elapsed = time.perf_counter() - started
        if elapsed > _SECONDS:
            return elapsed / units
