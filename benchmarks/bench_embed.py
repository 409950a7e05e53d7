"""Embedding photos by efficientnet_lite0 at 224 pixels: against the forward pass alone, and against the loop people write.

The loop is webdataset, a DataLoader, open_clip's transform and eager torch. One core first; then two workers on two cores.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_decode import photos
from harness import Row, timed

from curate import encoders, engine
from curate.corpus import Job
from curate.engine import Resources, inference
from curate.engine.embedding import EmbedShards

PHOTOS, BATCH = 240, 8
ENCODER = "efficientnet_lite0"


def write(folder: Path, copies: int) -> list[str]:
    """Shards of the same photos."""
    found = []
    for copy in range(copies):
        path = folder / f"{copy:03d}.tar"
        with tarfile.open(path, "w") as tar:
            for number, data in enumerate(photos(PHOTOS)):
                for kind, content in (("jpg", data), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{number:06d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        found.append(str(path))
    return found


@dataclass(frozen=True)
class Forward:
    """The limit: normalisation and the forward pass alone, on random images."""

    model: inference.Model
    batch: int = BATCH

    def __call__(self, job: object) -> None:
        forward = inference.load(self.model)
        pixels = np.random.default_rng(0).integers(0, 256, (self.batch, 224, 224, 3), np.uint8)
        for _ in range(PHOTOS // self.batch):
            forward(pixels)


@dataclass(frozen=True)
class Clocked:
    """A task that warms up, waits for the others, and says how long it then took."""

    task: Callable[[object], object]
    folder: str
    workers: int

    def __call__(self, job: object) -> float:
        self.task(job)
        (Path(self.folder) / f"ready-{os.getpid()}").touch()
        while len(list(Path(self.folder).glob("ready-*"))) < self.workers:
            time.sleep(0.001)
        begin = time.perf_counter()
        self.task(job)
        return time.perf_counter() - begin


def loop(url: str, network: torch.nn.Module, transform: object) -> None:
    """What people write."""
    import webdataset

    data = webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg", "cls")
    data = data.map_tuple(transform, lambda label: label)
    with torch.no_grad():
        for images, _ in torch.utils.data.DataLoader(data, batch_size=64, num_workers=0):
            network(images)


def together(task: object, items: list[object], workers: int) -> float:
    """Seconds that the slowest of so many workers took, all at once and warm."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = engine.map(Clocked(task, folder, workers), items, Resources(workers, 1), advance=lambda *_: None)
        return max(outcome.result for outcome in outcomes)


def measure() -> list[Row]:
    import open_clip

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = write(folder, 2)
        made = encoders.make(ENCODER)
        how = made.preprocessing.__class__(**(made.preprocessing.__dict__ | {"decode": "fast"}))
        made = encoders.Encoder(made.network, how, made.weights_sha256)
        model = inference.prepare(made, ENCODER, None, "cpu", 1, folder / "encoder.onnx")
        task = EmbedShards(model, folder / "out", "cls", BATCH, 0)
        (folder / "out" / "pending").mkdir(parents=True)
        jobs = [[Job(number, url, Path(url).stat().st_size, None)] for number, url in enumerate(urls)]
        transform = open_clip.image_transform(224, is_train=False)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        one = timed({"ours": partial(task, jobs[0]), "limit": partial(Forward(model), None),
                     "peer": partial(loop, urls[0], made.network.eval(), transform)})  # fmt: skip
        os.sched_setaffinity(0, cores)
        rows.append(Row("embed, one core", **one, peer_name="the usual loop", least_of_limit=0.88, least_of_peer=4.5))
        if len(cores) >= 2:
            both = {"ours": [], "limit": []}
            for _ in range(5):
                both["ours"].append(together(task, jobs, 2))
                both["limit"].append(together(Forward(model), [None, None], 2))
            rows.append(Row("embed, two workers", *(float(np.median(both[kind])) for kind in ("ours", "limit")),
                            least_of_limit=0.80))  # fmt: skip
    return rows
