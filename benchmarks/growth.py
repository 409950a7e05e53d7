"""Time and peak memory of every stage on 1, 10 and 100 times as many samples: docs/growth.png, and
the numbers on stdout.

Little images and the encoder `pixels`, so that what grows is our own work; k-means on a fixed
sample. Each stage runs in a process of its own with one worker. Also the same samples in 100 times
as many shards, by a real encoder.

    python benchmarks/growth.py        (about ten minutes)
"""

import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from multiprocessing import Process, SimpleQueue
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import time_variants
from PIL import Image

from curate.plotting import COLOURS, label_axes, log_scale, new_figure

SIZES, NUM_CLASSES = (2_000, 20_000, 200_000), 10
NUM_IMAGES = 1_000  # different ones
STAGES = {
    "embed": ["embed", "{shards}", "--encoder", "pixels", "--workers", "1"],
    "cluster": ["cluster", "--k", "20", "--fit-rows", "2000"],
    "score": ["score", "ssl_prototypes"],
    "select": ["select", "--keep", "0.5", "--name", "half"],
    "export": ["export", "half", "{out}"],
    "report": ["report", "{report}"],
}


class Cost(NamedTuple):
    """CPU seconds and peak memory of a command."""

    seconds: float
    mebibytes: float


def draw_image(generator: np.random.Generator, label: int) -> bytes:
    """A JPEG of noise around the class' colour."""
    pixels = generator.integers(0, 60, (32, 32, 3)) + 20 * np.array([label, 3, 5])
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="JPEG")
    return file.getvalue()


def write_corpus(folder: Path, num_samples: int, samples_per_shard: int) -> str:
    """Write shards, in which the same images come again and again; returns their pattern."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images = [draw_image(generator, number % NUM_CLASSES) for number in range(NUM_IMAGES)]
    for start in range(0, num_samples, samples_per_shard):
        with tarfile.open(folder / f"{start // samples_per_shard:06d}.tar", "w") as tar:
            for number in range(start, min(start + samples_per_shard, num_samples)):
                image, label = images[number % NUM_IMAGES], str(number % NUM_CLASSES).encode()
                for extension, data in (("jpg", image), ("cls", label)):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / "*.tar")


def measure_command(arguments: list[str]) -> Cost:
    """Run a command of `curate` from a process of its own, whose only child it is."""
    results: SimpleQueue[Cost] = SimpleQueue()

    def run() -> None:
        command = [sys.executable, "-m", "curate", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run(  # noqa: S603 - our own command
            command, check=True, capture_output=True, env=environment
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        results.put(Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))

    process = Process(target=run)
    process.start()
    process.join()
    return results.get()


def measure_stages(folder: Path, num_samples: int) -> dict[str, Cost]:
    """The whole chain on a corpus of so many samples."""
    locations = {
        "shards": write_corpus(folder / "corpus", num_samples, 1_000),
        "out": str(folder / "out"),
        "report": str(folder / "report.html"),
    }
    catalog = ["-c", str(folder / "catalog")]
    return {
        stage: measure_command([word.format(**locations) for word in command] + catalog)
        for stage, command in STAGES.items()
    }


def draw_figure(costs: dict[int, dict[str, Cost]], path: Path) -> None:
    with new_figure(path, 9.6, 3.8, ncols=2) as (_, (time_axes, memory_axes)):
        for colour, stage in zip(COLOURS, STAGES, strict=False):
            stage_costs = [costs[size][stage] for size in SIZES]
            seconds = [cost.seconds for cost in stage_costs]
            mebibytes = [cost.mebibytes for cost in stage_costs]
            time_axes.plot(SIZES, seconds, "o-", color=colour, label=stage)
            memory_axes.plot(SIZES, mebibytes, "o-", color=colour, label=stage)
        log_scale(time_axes)
        log_scale(memory_axes, "x")
        memory_axes.set_ylim(bottom=0)
        label_axes(time_axes, "samples", "CPU seconds", "Time")
        label_axes(memory_axes, "samples", "MiB", "Peak memory")
        memory_axes.legend(ncols=2, fontsize=8)
        for axes in (time_axes, memory_axes):
            axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    path.with_suffix(".svg").unlink()


def embed_in_shards_of(samples_per_shard: int, folder: Path) -> None:
    """Embed 2,000 images by a real encoder."""
    corpus = folder / f"shards-of-{samples_per_shard}"
    if corpus.is_dir():
        shards = str(corpus / "*.tar")
    else:
        shards = write_corpus(corpus, 2_000, samples_per_shard)
    with tempfile.TemporaryDirectory(dir=folder) as catalog:
        options = ["--encoder", "efficientnet_lite0@128", "--workers", "1", "-c", catalog]
        measure_command(["embed", shards, *options])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        costs = {size: measure_stages(folder / str(size), size) for size in SIZES}
        for stage in STAGES:
            cells = [
                f"{costs[size][stage].seconds:.2f} s, {costs[size][stage].mebibytes:.0f} MiB"
                for size in SIZES
            ]
            print(stage, *cells, sep=" | ")
        draw_figure(costs, Path(__file__).parent.parent / "docs" / "growth")
        variants = {
            "2 shards": partial(embed_in_shards_of, 1000, folder),
            "200 shards": partial(embed_in_shards_of, 10, folder),
        }
        seconds = time_variants(variants, warm_up=False)
        ratio = seconds["200 shards"] / seconds["2 shards"]
        print(f"2,000 samples in 200 shards take {ratio:.2f} times as long as in 2")


if __name__ == "__main__":
    main()
