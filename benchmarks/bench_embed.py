"""Embedding photos by efficientnet_lite0 at 224 pixels: against the forward pass alone, and against
two loops.

The usual loop is webdataset, a DataLoader, open_clip's transform and eager torch. The careful one
decodes by simplejpeg, resizes bytes by torch, and runs our ONNX file, in batches of the same size.
One core first, in CPU seconds; then two workers on two cores, on the clock.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import simplejpeg
import torch
from bench_decode import load_photos
from harness import ROUNDS, Row, time_variants
from torchvision.transforms.v2 import functional

from curate.encoders import make_encoder
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.member_roles import MemberRoles
from curate.stages.embed.inference import EncoderPlan, load_forward, plan_encoder
from curate.stages.embed.worker import EmbedShards, ShardTask

NUM_PHOTOS, BATCH_SIZE = 240, 8
ENCODER = "efficientnet_lite0"


def write_photo_shards(
    folder: Path, count: int, repeats: int = 1, num_photos: int = NUM_PHOTOS
) -> list[str]:
    """Shards of the same photos, each of them so many times."""
    urls, photos = [], repeats * load_photos(num_photos)
    for shard in range(count):
        path = folder / f"{shard:03d}.tar"
        with tarfile.open(path, "w") as tar:
            for number, photo in enumerate(photos):
                for extension, data in (("jpg", photo), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        urls.append(str(path))
    return urls


def make_shard_tasks(urls: list[str]) -> list[ShardTask]:
    return [
        ShardTask(shard_id, url, Path(url).stat().st_size, None, url)
        for shard_id, url in enumerate(urls)
    ]


def make_embed_task(plan: EncoderPlan, folder: Path, batch_size: int) -> EmbedShards:
    """The task of `curate embed`, which writes into the folder."""
    (folder / "pending").mkdir(parents=True)
    return EmbedShards(plan, str(folder), MemberRoles(), batch_size)


@dataclass(frozen=True)
class ForwardOnly:
    """The limit: normalisation and the forward pass alone, on random images."""

    plan: EncoderPlan
    batch_size: int = BATCH_SIZE

    def __call__(self, item: object = None) -> None:
        forward = load_forward(self.plan)
        shape = (self.batch_size, 224, 224, 4)  # as decoders give them
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        for _ in range(NUM_PHOTOS // self.batch_size):
            forward(pixels)


@dataclass(frozen=True)
class TimedTask:
    """A task that warms up, waits for the other workers, and returns the seconds it then took."""

    task: Callable[[object], object]
    folder: str
    num_workers: int

    def __call__(self, item: object) -> float:
        self.task(item)
        (Path(self.folder) / f"ready-{os.getpid()}").touch()
        while len(list(Path(self.folder).glob("ready-*"))) < self.num_workers:
            time.sleep(0.001)
        start = time.perf_counter()
        self.task(item)
        return time.perf_counter() - start


def usual_loop(url: str, network: torch.nn.Module, transform: Callable[..., object]) -> None:
    """What people write."""
    import webdataset

    data = (
        webdataset.WebDataset(url, shardshuffle=False, empty_check=False)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, lambda label: label)
    )
    with torch.no_grad():
        for images, _ in torch.utils.data.DataLoader(data, batch_size=64, num_workers=0):
            network(images)


def decode_carefully(photo: bytes) -> torch.Tensor:
    """uint8 [3, 224, 224]"""
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(photo)).permute(2, 0, 1)
    resized = functional.resize(pixels, [224], functional.InterpolationMode.BICUBIC)
    return functional.center_crop(resized, [224])


def careful_loop(url: str, plan: EncoderPlan, cores: int) -> None:
    """What people write who have measured."""
    import webdataset

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(plan.onnx, options, ["CPUExecutionProvider"])
    mean, std = (
        torch.tensor(values)[:, None, None] * 255
        for values in (plan.preprocessing.mean, plan.preprocessing.std)
    )
    data = (
        webdataset.WebDataset(url, shardshuffle=False, empty_check=False)
        .to_tuple("jpg", "cls")
        .map_tuple(decode_carefully, lambda label: label)
    )
    workers = cores if cores > 1 else 0
    for images, _ in torch.utils.data.DataLoader(data, BATCH_SIZE, num_workers=workers):
        session.run(None, {"images": ((images - mean) / std).numpy()})


def slowest_worker(task: Callable[[object], object], items: list[object]) -> float:
    """Seconds that the slowest of as many workers as items took, all at once and warm."""
    with tempfile.TemporaryDirectory() as folder:
        timed_task = TimedTask(task, folder, len(items))
        results = engine.map_or_raise(timed_task, items, Resources(len(items), 1))
        return max(seconds for _, seconds in results)


def measure() -> list[Row]:
    import open_clip

    torch.set_num_threads(1)
    transform = open_clip.image_transform(224, is_train=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = write_photo_shards(folder, 2)
        encoder = make_encoder(ENCODER)
        encoder = replace(encoder, preprocessing=replace(encoder.preprocessing, decode="fast"))
        plan = plan_encoder(encoder, ENCODER, None, "cpu", 1, str(folder / "encoder.onnx"))
        task = make_embed_task(plan, folder / "out", BATCH_SIZE)
        groups = [[shard_task] for shard_task in make_shard_tasks(urls)]
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        one_core = time_variants(
            {
                "ours": partial(task, groups[0]),
                "limit": ForwardOnly(plan),
                "peer": partial(usual_loop, urls[0], encoder.network.eval(), transform),
                "careful": partial(careful_loop, urls[0], plan, 1),
            },
            cpu_time=True,
        )
        os.sched_setaffinity(0, cores)
        careful = one_core.pop("careful")
        rows = [
            Row(
                "embed, one core",
                **one_core,
                peer_name="the usual loop",
                least_of_limit=0.88,
                least_of_peer=4.5,
            ),
            Row(
                "embed, one core, careful loop",
                one_core["ours"],
                peer=careful,
                peer_name="simplejpeg and ONNX Runtime",
                least_of_peer=1.0,
            ),
        ]
        if len(cores) >= 2:
            ours, limit, loop = [], [], []
            for _ in range(ROUNDS):
                ours.append(slowest_worker(task, groups))
                limit.append(slowest_worker(ForwardOnly(plan), [None, None]))
                started = time.perf_counter()
                careful_loop(f"{folder}/{{000..001}}.tar", plan, 2)
                loop.append(time.perf_counter() - started)
            rows.append(
                Row(
                    "embed, two workers",
                    float(np.median(ours)),
                    limit=float(np.median(limit)),
                    peer=float(np.median(loop)),
                    peer_name="a careful loop, two workers",
                    least_of_limit=0.80,
                    least_of_peer=1.0,
                )
            )
    return rows
