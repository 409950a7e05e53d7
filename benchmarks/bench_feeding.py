"""What feeds a GPU: images handed to a made-up one, against decoding alone on the same cores.

Without decoding, it is compared with what this package once did: one process did everything in
turn, and stacked the images of a batch, which were planes of a larger one. The made-up GPU takes
20 µs for an image. A shard has 960 photos: what it costs once is spread over about as many as
shards usually have. Times are seconds of processors, of this process and its decoders together,
because the table is for machines that are busy otherwise; `python benchmarks/bench_feeding.py`
prints wall-clock time too.
"""

import os
import random
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_decode import load_photos
from bench_embed import NUM_PHOTOS, make_shard_tasks, write_photo_shards
from harness import ROUNDS, Row

from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.images import Preprocessing, decode_image
from curate.formats.member_roles import MemberRoles
from curate.stages.embed import feeding, worker
from curate.stages.embed.inference import EncoderPlan
from curate.stages.embed.pending import SampleRecord
from curate.stages.embed.worker import EmbedShards, ShardEnd

PREPROCESSING = Preprocessing(224, 224, decode="fast")
PLAN = EncoderPlan("made up", None, "cuda", 1, PREPROCESSING, None)
DIM, BATCH_SIZE, NUM_SHARDS, REPEATS = 512, 256, 2, 4
NUM_IMAGES = NUM_SHARDS * REPEATS * NUM_PHOTOS
SECONDS_PER_IMAGE = 20e-6


class Seconds(NamedTuple):
    """Of all processors together, and on the clock."""

    processors: float
    clock: float


class MadeUpDevice:
    """Busy for so long after a batch was begun; the vectors are the first pixels."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.num_images = self.num_batches = 0
        self.busy_until = 0.0

    def begin(self, images: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        count = sum(map(len, images))
        self.num_images += count
        self.num_batches += 1
        self.busy_until = max(time.monotonic(), self.busy_until) + count * SECONDS_PER_IMAGE
        return images, self.busy_until

    def finish(self, begun: tuple[list[np.ndarray], float]) -> np.ndarray:
        images, finished = begun
        time.sleep(max(finished - time.monotonic(), 0))
        first_pixels = [array.reshape(len(array), -1)[:, :DIM] for array in images]
        return np.concatenate(first_pixels).astype(np.float16)

    def register(self, memory: np.ndarray) -> None:
        pass

    def release(self) -> None:
        pass


@dataclass(frozen=True)
class WithoutDecoding(EmbedShards):
    """All that embedding does but to decode: every image is the same."""

    def decode(self, record: SampleRecord | ShardEnd) -> SampleRecord | ShardEnd:
        if isinstance(record, SampleRecord):
            record.rgbx, record.members = _PIXELS, {}
            record.width = record.height = 224
        return record


_PIXELS = np.full((224, 224, 4), 255, np.uint8)
_PLANES = np.full((4, 298, 224), 255, np.uint8).transpose(1, 2, 0)[37:261]


@dataclass(frozen=True)
class DecodeOnly:
    """The limit: photos decoded and resized, with their checksums."""

    photos: tuple[bytes, ...]
    repeats: int

    def __call__(self, item: object = None) -> Seconds:
        """Of this process, when it is warm."""
        self.decode(1)
        before, started = time.process_time(), time.perf_counter()
        self.decode(self.repeats)
        return Seconds(time.process_time() - before, time.perf_counter() - started)

    def decode(self, repeats: int) -> None:
        for _ in range(repeats):
            for photo in self.photos:
                decode_image(photo, PREPROCESSING, with_checksum=True)


def processor_seconds(processes: list[int]) -> float:
    """Of these processes until now, by their clocks (see clock_getcpuclockid in Linux)."""
    return sum(time.clock_gettime((~process << 3) | 2) for process in processes)


class Fed:
    """Feeding, ready: decoders run, and have decoded once."""

    def __init__(self, kind: type[EmbedShards], folder: Path, urls: list[str], cores: int) -> None:
        (folder / "pending").mkdir(parents=True)
        self.shards, self.device = make_shard_tasks(urls), MadeUpDevice()
        task = kind(PLAN, str(folder), MemberRoles(), BATCH_SIZE)
        feed = feeding.FeedDevice(task, DIM, cores)
        self.feeder = feeding._Feeder(feed, self.device, None)
        self.processes = [decoder.process.pid for decoder in self.feeder._decoders]
        self.feeder.embed(self.shards)

    def measure(self) -> Seconds:
        """For all shards."""
        before, started = self._used(), time.perf_counter()
        result = self.feeder.embed(self.shards)
        if result.problems:
            raise RuntimeError(f"shards failed: {result.problems}")
        return Seconds(self._used() - before, time.perf_counter() - started)

    def _used(self) -> float:
        return processor_seconds([os.getpid(), *self.processes])


class InOneProcess:
    """All but decoding in this process, one step after the other, as it was before."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        (folder / "pending").mkdir(parents=True)
        self.shards, self.device = make_shard_tasks(urls), MadeUpDevice()
        self.task = WithoutDecoding(PLAN, str(folder), MemberRoles(), BATCH_SIZE)
        self.measure()

    def measure(self) -> Seconds:
        """For all shards."""
        before, started = time.process_time(), time.perf_counter()
        with unittest.mock.patch.object(worker, "load_forward", lambda plan: self.forward):
            result = self.task(self.shards)
        if result.problems:
            raise RuntimeError(f"shards failed: {result.problems}")
        return Seconds(time.process_time() - before, time.perf_counter() - started)

    def forward(self, images: Sequence[np.ndarray]) -> np.ndarray:
        batch = np.stack([_PLANES for _ in images])
        return self.device.finish(self.device.begin([batch]))


def measure_decoding(decode_only: DecodeOnly, cores: int) -> Seconds:
    """As many processes as cores, at once, as decoders are: one would have their caches alone."""
    part = replace(decode_only, repeats=decode_only.repeats // cores)
    outcomes = engine.map_or_raise(part, [None] * cores, Resources(cores, 1))
    seconds = [seconds for _, seconds in outcomes]
    return Seconds(sum(one.processors for one in seconds), max(one.clock for one in seconds))


def measure_rounds() -> dict[str, Seconds]:
    """Medians of each variant: `ceiling` without decoding and `one process` likewise, `fed`, and
    `decode` alone."""
    cores = min(len(os.sched_getaffinity(0)), 2)
    rounds: dict[str, list[Seconds]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = write_photo_shards(folder, NUM_SHARDS, REPEATS)
        ceiling = Fed(WithoutDecoding, folder / "ceiling", urls, 1)
        fed = Fed(EmbedShards, folder / "fed", urls, cores)
        decode_only = DecodeOnly(tuple(load_photos(NUM_PHOTOS)), NUM_SHARDS * REPEATS)
        variants: dict[str, Callable[[], Seconds]] = {
            "ceiling": ceiling.measure,
            "one process": InOneProcess(folder / "one", urls).measure,
            "fed": fed.measure,
            "decode": partial(measure_decoding, decode_only, cores),
        }
        for _ in range(ROUNDS):
            for variant in random.sample(list(variants), len(variants)):
                rounds.setdefault(variant, []).append(variants[variant]())
        ceiling.feeder.close()
        fed.feeder.close()
    return {
        variant: Seconds(*(float(np.median(column)) for column in zip(*values, strict=True)))
        for variant, values in rounds.items()
    }


def measure() -> list[Row]:
    medians = measure_rounds()
    return [
        Row(
            "feed a GPU, without decoding",
            medians["ceiling"].processors,
            peer=medians["one process"].processors,
            peer_name="one process",
            least_of_peer=4.0,
        ),
        Row(
            "feed a GPU",
            medians["fed"].processors,
            limit=medians["decode"].processors,
            least_of_limit=0.9,
        ),
    ]


def main() -> None:
    for variant, seconds in measure_rounds().items():
        print(
            f"{variant}: {NUM_IMAGES / seconds.processors:,.0f} images a second of one core, "
            f"{NUM_IMAGES / seconds.clock:,.0f} images a second on the clock"
        )


if __name__ == "__main__":
    import bench_feeding  # by its name, by which decoders find WithoutDecoding

    bench_feeding.main()
