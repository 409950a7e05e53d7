"""Time and peak memory of every stage on 1, 10 and 100 times as many samples: docs/growth.png, and the numbers on stdout.

Little images and the encoder `pixels`, so that what grows is our own work; k-means on a fixed sample. Each stage
runs in a process of its own with one worker. Also the same samples in 100 times as many shards, by a real encoder.

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

import numpy as np
from harness import timed
from PIL import Image

from curate import figures

SIZES, CLASSES = (2_000, 20_000, 200_000), 10
STAGES = {
    "embed": ["embed", "{shards}", "--encoder", "pixels", "--workers", "1"],
    "cluster": ["cluster", "--k", "20", "--sample", "2000"],
    "score": ["score", "ssl_prototypes"],
    "select": ["select", "--keep", "0.5", "--name", "half"],
    "export": ["export", "half", "{out}"],
    "report": ["report", "{report}"],
}


def write(folder: Path, samples: int, per_shard: int) -> str:
    """Shards of noise around ten colours; a thousand images are drawn, and used again and again."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images = []
    for number in range(1_000):
        noise = generator.integers(0, 60, (32, 32, 3)) + 20 * np.array([number % CLASSES, 3, 5])
        file = io.BytesIO()
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(file, format="JPEG")
        images.append(file.getvalue())
    for start in range(0, samples, per_shard):
        with tarfile.open(folder / f"{start // per_shard:06d}.tar", "w") as tar:
            for number in range(start, min(start + per_shard, samples)):
                for kind, data in (("jpg", images[number % 1_000]), ("cls", str(number % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / "*.tar")


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of a command."""
    answer: SimpleQueue[tuple[float, float]] = SimpleQueue()

    def run() -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "curate", *command], check=True, capture_output=True, env=environment)  # noqa: S603
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer.put((used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))

    process = Process(target=run)
    process.start()
    process.join()
    return answer.get()


def chain(folder: Path, samples: int) -> dict[str, tuple[float, float]]:
    places = {"shards": write(folder / "corpus", samples, 1_000), "out": str(folder / "out"), "report": str(folder / "r.html")}
    return {
        name: measured([part.format(**places) for part in command] + ["-c", str(folder / "catalog")])
        for name, command in STAGES.items()
    }


def draw(found: dict[int, dict[str, tuple[float, float]]]) -> None:
    target = Path(__file__).parent.parent / "docs" / "growth"
    with figures.drawing(target, 9.6, 3.8, ncols=2) as (_, (left, right)):
        for colour, name in zip(figures.COLOURS, STAGES, strict=False):
            times, memory = zip(*(found[size][name] for size in SIZES), strict=True)
            left.plot(SIZES, times, "o-", color=colour, label=name)
            right.plot(SIZES, memory, "o-", color=colour, label=name)
        figures.logarithmic(left)
        figures.logarithmic(right, "x")
        right.set_ylim(bottom=0)
        figures.named(left, "samples", "CPU seconds", "Time")
        figures.named(right, "samples", "MiB", "Peak memory")
        right.legend(ncols=2, fontsize=8)
        for axes in (left, right):
            axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    target.with_suffix(".svg").unlink()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {size: chain(folder / str(size), size) for size in SIZES}
        for stage in STAGES:
            print(
                stage,
                *(f"{seconds:.2f} s, {memory:.0f} MiB" for seconds, memory in (found[size][stage] for size in SIZES)),
                sep=" | ",
            )
        draw(found)
        found_by = timed({count: partial(embedded, folder, count) for count in ("1000", "10")}, warm=False)
        print(f"2,000 samples in 200 shards take {found_by['10'] / found_by['1000']:.2f} times as long as in 2")


def embedded(folder: Path, per_shard: str) -> None:
    """Embed 2,000 images by a real encoder, from shards of so many each."""
    corpus = folder / f"shards-of-{per_shard}"
    shards = str(corpus / "*.tar") if corpus.is_dir() else write(corpus, 2_000, int(per_shard))
    with tempfile.TemporaryDirectory(dir=folder) as catalog:
        measured(["embed", shards, "--encoder", "efficientnet_lite0@128", "--workers", "1", "-c", catalog])


if __name__ == "__main__":
    main()
