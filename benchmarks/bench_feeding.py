"""What feeds a GPU: images handed to a made-up one, against decoding alone on the same cores.

The made-up GPU takes 20 µs for an image, and checks that each slot holds the pixels of its photo.
Times are seconds of processors, of this process and its decoders together, because the table is for
machines that are busy otherwise; `python benchmarks/bench_feeding.py` prints wall-clock time too.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_decode import load_photos
from bench_embed import NUM_PHOTOS, make_shard_tasks, slowest_worker, write_photo_shards
from harness import ROUNDS, Row

from curate.formats.images import Preprocessing, decode_image
from curate.formats.member_roles import MemberRoles
from curate.stages.embed import feeding
from curate.stages.embed.inference import EncoderPlan
from curate.stages.embed.pending import SampleRecord
from curate.stages.embed.worker import EmbedShards, ShardEnd

PREPROCESSING = Preprocessing(224, 224, decode="fast")
PLAN = EncoderPlan("made up", None, "cuda", 1, PREPROCESSING, None)
DIM, BATCH_SIZE, NUM_SHARDS = 512, 256, 8
SECONDS_PER_IMAGE = 20e-6
LEAST_CEILING = 3_800  # images a second of one core: four times what threads handed over


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
        first_pixels = [array[:, 0, : DIM // 4].reshape(len(array), -1) for array in images]
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


@dataclass(frozen=True)
class DecodeOnly:
    """The limit: the photos of one shard, decoded and resized, with their checksums."""

    photos: tuple[bytes, ...]
    repeats: int

    def __call__(self, item: object = None) -> float:
        """Seconds of this process' processor."""
        start = time.process_time()
        for _ in range(self.repeats):
            for photo in self.photos:
                decode_image(photo, PREPROCESSING, with_checksum=True)
        return time.process_time() - start


def processor_seconds(processes: list[int]) -> float:
    """Of these processes until now."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


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
        assert not result.problems
        return Seconds(self._used() - before, time.perf_counter() - started)

    def _used(self) -> float:
        return processor_seconds([os.getpid(), *self.processes])


def measure_decoding(decode_only: DecodeOnly, cores: int) -> Seconds:
    """All photos in this process, and on the clock in as many processes as cores."""
    part = replace(decode_only, repeats=decode_only.repeats // cores)
    return Seconds(decode_only(), slowest_worker(part, [None] * cores))


def measure_rounds() -> dict[str, Seconds]:
    """Medians of each variant: `ceiling` without decoding, `fed`, and `decode` alone."""
    cores = min(len(os.sched_getaffinity(0)), 2)
    rounds: dict[str, list[Seconds]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = write_photo_shards(folder, NUM_SHARDS)
        ceiling = Fed(WithoutDecoding, folder / "ceiling", urls, 1)
        fed = Fed(EmbedShards, folder / "fed", urls, cores)
        decode_only = DecodeOnly(tuple(load_photos(NUM_PHOTOS)), NUM_SHARDS)
        variants: dict[str, Callable[[], Seconds]] = {
            "ceiling": ceiling.measure,
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
            limit=NUM_SHARDS * NUM_PHOTOS / LEAST_CEILING,
            least_of_limit=1.0,
        ),
        Row(
            "feed a GPU",
            medians["fed"].processors,
            limit=medians["decode"].processors,
            least_of_limit=0.9,
        ),
    ]


def main() -> None:
    num_images = NUM_SHARDS * NUM_PHOTOS
    for variant, seconds in measure_rounds().items():
        print(
            f"{variant}: {num_images / seconds.processors:,.0f} images a second of one core, "
            f"{num_images / seconds.clock:,.0f} images a second on the clock"
        )


if __name__ == "__main__":
    main()
