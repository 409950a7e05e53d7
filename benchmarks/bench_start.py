"""What the small commands cost before they do anything, and those of a small catalog: seconds of
CPU, against 0.4 and 1.

With another checkout, each command of both in turn, as ratios; and what one more shard costs, made
of the first photos of a folder of shards:

    python benchmarks/bench_start.py OTHER_CHECKOUT [../shared/data/clothing]
"""

import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import Row
from PIL import Image

from curate.catalog.catalog import Catalog

LIMIT, STAGE_LIMIT = 0.4, 1.0
ROUNDS = int(os.environ.get("ROUNDS", "7"))
STAGES = (
    ("cluster",),
    ("score", "ssl_prototypes"),
    ("select", "--keep", "0.5", "--name", "half"),
    ("export", "half", "OUT"),
)
NUM_OLD, NUM_NEW = 100, 400  # photos
ENCODER = "efficientnet_lite0"


class Cost(NamedTuple):
    """Seconds of a command by the clock, and those that it and its workers used a core."""

    wall: float
    cpu: float


def run_command(*arguments: str, checkout: Path | None = None) -> Cost:
    """What a command line costs, of this installation or of another checkout."""
    command = [str(Path(sys.executable).with_name("curate")), *arguments]
    if checkout:
        command = [sys.executable, "-m", "curate", *arguments]
    environment = os.environ | ({"PYTHONPATH": str(checkout)} if checkout else {})
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(  # noqa: S603 - our own command
        command, check=True, capture_output=True, cwd=checkout, env=environment
    )
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu)


def cpu_seconds(*arguments: str) -> float:
    return run_command(*arguments).cpu


def write_small_shard(path: Path, count: int = 500) -> None:
    """Images of noise in ten classes."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="PNG")
            for extension, content in (("png", file.getvalue()), ("cls", b"%d" % (number % 10))):
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def make_small_catalog(folder: Path, checkout: Path | None = None) -> Path:
    """By the checkout itself, whose catalogs may be of an older schema."""
    write_small_shard(folder / "small.tar")
    words = ("embed", str(folder / "small.tar"), "--encoder", "pixels")
    run_command(*words, "-c", str(folder / "small"), checkout=checkout)
    return folder / "small"


def measure_stages(small: Path, checkout: Path | None = None) -> dict[str, Cost]:
    """What each stage costs on a copy of a small catalog."""
    with tempfile.TemporaryDirectory() as folder:
        copy, out = Path(folder) / "copy", Path(folder) / "out"
        shutil.copytree(small, copy)
        return {
            words[0]: run_command(
                *(str(out) if word == "OUT" else word for word in words),
                "-c",
                str(copy),
                checkout=checkout,
            )
            for words in STAGES
        }


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = str(Path(folder) / "catalog")
        Catalog(catalog).create()
        commands = {
            "--help": ("--help",),
            "query": ("query", "sets", "-c", catalog),
            "list": ("list", "metrics", "-c", catalog),
        }
        rows = []
        for name, arguments in commands.items():
            seconds = statistics.median(cpu_seconds(*arguments) for _ in range(ROUNDS))
            rows.append(Row(f"curate {name}", seconds, limit=LIMIT, least_of_limit=1.0))
        small = make_small_catalog(Path(folder))
        costs = [measure_stages(small) for _ in range(ROUNDS)]
        for name in costs[0]:
            seconds = statistics.median(cost[name].cpu for cost in costs)
            rows.append(
                Row(f"curate {name}, 500 samples", seconds, limit=STAGE_LIMIT, least_of_limit=1.0)
            )
    return rows


def write_photos(source: Path, path: Path, first: int, stop: int) -> None:
    """A shard of the samples from `first` to before `stop` of a folder of shards."""
    keys: dict[str, None] = {}
    with tarfile.open(path, "w") as target:
        for shard in sorted(source.glob("*train*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    keys.setdefault(member.name.partition(".")[0])
                    if len(keys) > stop:
                        return
                    if len(keys) > first:
                        target.addfile(member, tar.extractfile(member))


def measure_one_more_shard(checkout: Path, folder: Path, old: Path, new: Path) -> Cost:
    """What a second shard costs; the first one is embedded already, by the same checkout."""
    first, copy = folder / "first", folder / "copy"
    encoder = ("--encoder", ENCODER)
    if not first.exists():
        run_command("embed", str(old), *encoder, "-c", str(first), checkout=checkout)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(first, copy)
    return run_command("embed", str(new), *encoder, "-c", str(copy), checkout=checkout)


def compare(other: Path, photos: Path) -> None:
    """Print this checkout against another one: medians of ratios, the commands in turn."""
    checkouts = (other, Path(__file__).resolve().parents[1])
    costs: dict[str, list[tuple[Cost, ...]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_photos(photos, folder / "old.tar", 0, NUM_OLD)
        write_photos(photos, folder / "new.tar", NUM_OLD, NUM_OLD + NUM_NEW)
        shards = (folder / "old.tar", folder / "new.tar")
        folders = [folder / str(number) for number in range(len(checkouts))]
        for own_folder, checkout in zip(folders, checkouts, strict=True):
            own_folder.mkdir()
            make_small_catalog(own_folder, checkout)
        for _ in range(ROUNDS):
            stages = [
                measure_stages(own_folder / "small", checkout)
                for own_folder, checkout in zip(folders, checkouts, strict=True)
            ]
            for stage in stages[0]:
                pair = tuple(of_checkout[stage] for of_checkout in stages)
                costs.setdefault(f"curate {stage}, 500 samples", []).append(pair)
            pair = tuple(
                measure_one_more_shard(checkout, own_folder, *shards)
                for own_folder, checkout in zip(folders, checkouts, strict=True)
            )
            costs.setdefault(f"curate embed, one more shard of {NUM_NEW} photos", []).append(pair)
    print(
        "| command | CPU s before | CPU s now | CPU, ratio | wall, ratio |\n|---|---|---|---|---|"
    )
    for command, pairs in costs.items():
        cpu, wall = (
            statistics.median(getattr(now, kind) / getattr(then, kind) for then, now in pairs)
            for kind in ("cpu", "wall")
        )
        before_s, now_s = (statistics.median(pair[which].cpu for pair in pairs) for which in (0, 1))
        print(f"| {command} | {before_s:.2f} | {now_s:.2f} | {cpu:.2f} | {wall:.2f} |")


if __name__ == "__main__":
    compare(
        Path(sys.argv[1]).resolve(),
        Path(sys.argv[2] if len(sys.argv) > 2 else "../shared/data/clothing"),
    )
