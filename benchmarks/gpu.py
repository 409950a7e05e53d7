"""What must be seen on one GPU, in about eight minutes: `make gpu`, or python benchmarks/gpu.py.

Writes a JSON file as it goes: images a second through the whole of `embed` on made-up JPEG shards,
beside the forward pass alone and decoding alone, how long the device waited, a DataLoader loop, and
how near the vectors are to those of full precision; a pass of k-means as products of matrices; and
CIFAR-10 by the verbs themselves: the accuracy of a ResNet, and small networks on what EL2N keeps
against random samples (Fig. 1D and 3C of Sorscher et al. 2022). Weights of encoders are random:
they cost the same. CURATE_DATA is the folder with cifar10/*.tar; without it, images are made up.
Without a GPU everything runs at toy size, to show that it runs: targets of speed and of accuracy
are none then. Not yet run on hardware.
"""

import argparse
import importlib.util
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import curate
from curate.encoders import make_encoder
from curate.execution.limits import cpu_count
from curate.formats.images import decode_image
from curate.formats.member_roles import MemberRoles
from curate.stages.embed.device import TorchDevice, load_device, measure_dim
from curate.stages.embed.feeding import FeedDevice, close_feeder
from curate.stages.embed.inference import EncoderPlan
from curate.stages.embed.worker import EmbedShards, ShardTask

SIZES = {
    "gpu": {
        "models": ("ViT-B-32", "ViT-L-14"),
        "edge": 224,
        "shards": 64,
        "per_shard": 512,
        "batch": 256,
    },
    "toy": {"models": ("ViT-S-32-alt",), "edge": 64, "shards": 2, "per_shard": 4, "batch": 2},
}
KMEANS = {"gpu": (10_000_000, 512, 10_000), "toy": (5_000, 16, 50)}  # rows, length, centroids
# Images are upscaled fourfold, because the first layers of ResNet-18 leave a quarter of the edge.
PRUNING = {
    "gpu": {
        "resnet": "timm:resnet18@128",
        "epochs": None,
        "keep": [0.8, 0.6, 0.4],
        "train": 50_000,
        "test": 10_000,
    },
    "toy": {
        "resnet": "timm:resnet18@32",
        "epochs": 1,
        "keep": [0.5],
        "train": 160,
        "test": 40,
    },
}
NUM_CLASSES, NUM_SEEDS = 10, 2
DATA = Path(os.environ.get("CURATE_DATA", "../shared/data"))
PHOTO = (500, 375)  # as large as photos of web corpora are after their usual reduction
TARGETS = {
    "of_forward": 0.9,  # for ViT-L-14; smaller networks are limited by decoding
    "of_decode": 0.85,
    "images_per_second": 6_000,
    "least_cosine": 0.9995,
    "accuracy": 0.935,  # of the ResNet on CIFAR-10
}


def make_photo(seed: int) -> bytes:
    """A JPEG of about 50 KB: smooth colours with some noise."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(PHOTO)
    noise = random.normal(0, 12, (PHOTO[1], PHOTO[0], 3))
    file = io.BytesIO()
    pixels = np.clip(noise + smooth, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_shards(folder: Path, count: int, per_shard: int) -> list[ShardTask]:
    photos = [make_photo(seed) for seed in range(min(per_shard, 256))]
    shards = []
    for number in range(count):
        path = folder / f"{number:04d}.tar"
        with tarfile.open(path, "w") as tar:
            for position in range(per_shard):
                data = photos[(position + number) % len(photos)]
                member = tarfile.TarInfo(f"{position:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        shards.append(ShardTask(number, str(path), path.stat().st_size, None, str(path)))
    return shards


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_forward(device: TorchDevice, size: int, batch: int, seconds: float) -> float:
    """Images a second of the device alone: batches that are in memory, two at once."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 4), np.uint8)
    device.finish(device.begin([images]))
    count, started = 0, time.perf_counter()
    begun = [device.begin([images])]
    while not count or time.perf_counter() - started < seconds:
        begun.append(device.begin([images]))
        device.finish(begun.pop(0))
        count += batch
    return count / (time.perf_counter() - started)


def measure_compiled(plan: EncoderPlan, batch: int, device: str, seconds: float) -> dict[str, Any]:
    """What `embed --compile` would gain, and the time that compiling takes."""
    network = make_encoder(plan.spec, plan.checkpoint).network
    started = time.perf_counter()
    compiled = TorchDevice(network, plan.preprocessing, torch.device(device), compiled_batch=batch)
    return {
        "seconds_to_load": time.perf_counter() - started,
        "images_per_second": measure_forward(compiled, plan.preprocessing.size, batch, seconds),
        "notes": compiled.notes,
    }


def read_photos(path: str) -> Iterator[bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield file.read()


def decode_shard(plan: EncoderPlan, path: str) -> int:
    torch.set_num_threads(1)
    return sum(len(decode_image(data, plan.preprocessing)) > 0 for data in read_photos(path))


def measure_decoding(plan: EncoderPlan, shards: list[ShardTask], cores: int) -> float:
    """Images a second of all cores that only decode."""
    paths = [shard.url for shard in shards]
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(decode_shard, plan), paths[:cores]))  # warm
        started = time.perf_counter()
        count = sum(pool.map(partial(decode_shard, plan), paths))
        return count / (time.perf_counter() - started)


class Photos(torch.utils.data.IterableDataset[torch.Tensor]):
    """What people write: a tar a worker, Pillow, the model's own transform."""

    def __init__(self, paths: list[str], transform: Callable[..., Any]) -> None:
        self.paths, self.transform = paths, transform

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for path in self.paths[first::step]:
            for data in read_photos(path):
                yield self.transform(Image.open(io.BytesIO(data)))


def measure_loop(
    model: str, edge: int, shards: list[ShardTask], batch: int, cores: int, device: str
) -> float:
    """Images a second of a DataLoader with a worker per core, and autocast."""
    import open_clip

    clip, _, transform = open_clip.create_model_and_transforms(
        model, pretrained=None, force_image_size=edge
    )
    network = clip.visual.eval().to(device)
    photos = Photos([shard.url for shard in shards], transform)
    loader = torch.utils.data.DataLoader(
        photos, batch_size=batch, num_workers=cores, pin_memory=device == "cuda"
    )
    count, started = 0, 0.0
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        for images in loader:
            network(images.to(device, non_blocking=True)).float().cpu()
            if started:
                count += len(images)
            started = started or time.perf_counter()
    return count / (time.perf_counter() - started)


def measure_embedding(
    plan: EncoderPlan, folder: Path, shards: list[ShardTask], batch: int, cores: int
) -> dict[str, Any]:
    """The whole of embed but for the catalog, when decoders run and the encoder is loaded."""
    (folder / "pending").mkdir(parents=True)
    task = EmbedShards(plan, str(folder), MemberRoles(), batch)
    feed = FeedDevice(task, measure_dim(plan), cores)
    try:
        feed(shards[:cores])
        started = time.perf_counter()
        result = feed(shards)
        seconds = time.perf_counter() - started
    finally:
        close_feeder()
    if result.problems or result.end:
        raise RuntimeError(f"shards failed: {result.end or result.problems}")
    num_images = sum(1 for shard in shards for _ in read_photos(shard.url))
    return {
        "images_per_second": num_images / seconds,
        "waited_for_images": result.seconds["wait for images"] / seconds,
        "notes": list(result.notes),
    }


def least_cosine(
    device: TorchDevice, network: torch.nn.Module, plan: EncoderPlan, count: int
) -> float:
    """Between the vectors of photos by the device and by full precision on the processor."""
    images = np.stack(
        [decode_image(make_photo(seed), plan.preprocessing).rgbx for seed in range(count)]
    )
    ours = torch.from_numpy(device.finish(device.begin([images]))).double()
    with torch.inference_mode():
        inputs = torch.from_numpy(plan.preprocessing.normalize(images))
        expected = network.cpu().float()(inputs).double()
    return float(torch.cosine_similarity(ours, expected).min())


def measure_kmeans(rows: int, dim: int, k: int, device: str) -> dict[str, Any]:
    """One pass over every row: the nearest centroid of each, and the sums of each centroid."""
    tile = 1 << 16
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    options = {"generator": generator, "device": device}
    centroids = torch.nn.functional.normalize(torch.randn(k, dim, **options), dim=1)
    vectors = torch.nn.functional.normalize(torch.randn(tile, dim, **options), dim=1)
    sums, counts = torch.zeros(k, dim, device=device), torch.zeros(k, device=device)
    synchronize(device)
    started = time.perf_counter()
    for start in range(0, rows, tile):  # the same tile: made-up rows need not be stored
        part = vectors[: min(tile, rows - start)]
        nearest = (part.to(dtype) @ centroids.to(dtype).T).argmax(dim=1)
        sums.index_add_(0, nearest, part)
        counts += torch.bincount(nearest, minlength=k)
    synchronize(device)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "met": int(counts.sum()) == rows,
    }


def find_small_images(folder: Path, plan: dict[str, Any], is_toy: bool) -> tuple[Any, Any, bool]:
    """Shards to train on and to test with, and whether they are CIFAR-10 itself."""
    if not is_toy and list(DATA.glob("cifar10/cifar10-*.tar")):
        train, test = (str(DATA / f"cifar10/cifar10-{part}-*.tar") for part in ("train", "test"))
        return train, test, True
    paths = []
    random = np.random.default_rng(0)
    centers = random.integers(0, 256, (NUM_CLASSES, 4, 4, 3))
    for part in ("train", "test"):
        paths.append(str(folder / f"{part}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for position in range(plan[part]):
                label = position % NUM_CLASSES
                pixels = np.clip(centers[label] + random.normal(0, 60, (4, 4, 3)), 0, 255)
                file = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(file, "JPEG")
                members = {"jpg": file.getvalue(), "cls": str(label).encode()}
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{position:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return paths[0], paths[1], False


def measure_pruning(folder: Path, plan: dict[str, Any], device: str) -> dict[str, Any]:
    """A ResNet on all images, and small networks on the hardest and on random ones."""
    train, test, is_real = find_small_images(folder, plan, is_toy=device == "cpu")
    catalog = curate.Catalog(folder / "catalog")
    curate.embed(catalog, train, encoder="pixels", device="cpu")  # labels, and where images are
    options = {"epochs": plan["epochs"], "test": test, "device": device}
    started = time.perf_counter()
    resnet = curate.probe(catalog, model=plan["resnet"], count=1, **options)
    resnet_seconds = time.perf_counter() - started
    curate.probe(catalog, model="conv", count=NUM_SEEDS, name="small", **options)
    (scoring,) = curate.score(catalog, "el2n", probe="small")
    curate.validate(
        catalog, keep=plan["keep"], scoring=scoring, model="conv", seeds=NUM_SEEDS, **options
    )
    with catalog.reading() as connection:
        ((accuracy,),) = connection.execute(
            "select test_accuracy from probe_models where probe = ?", [resnet]
        ).fetchall()
        cursor = connection.execute(
            'select keep, num_samples, seeds, pruned, random, "full" from pruned_vs_random '
            "order by keep desc"
        )
        names = [column[0] for column in cursor.description]
        table = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    is_complete = [row["keep"] for row in table] == plan["keep"]
    return {
        "data": "CIFAR-10" if is_real else "made up",
        "resnet": plan["resnet"],
        "accuracy": accuracy,
        "resnet_seconds": resnet_seconds,
        "pruned_against_random": table,
        "seconds": time.perf_counter() - started,
        "met": is_complete and (not is_real or accuracy >= TARGETS["accuracy"]),
    }


def measure_model(
    model: str,
    edge: int,
    folder: Path,
    shards: list[ShardTask],
    batch: int,
    cores: int,
    device: str,
) -> dict[str, Any]:
    import open_clip

    torch.manual_seed(0)
    weights = folder / f"{model}.pt"
    torch.save(open_clip.create_model(model, pretrained=None).state_dict(), weights)
    spec = f"open_clip:{model}@{edge}"
    encoder = make_encoder(spec, str(weights))
    preprocessing = replace(encoder.preprocessing, decode="fast")
    plan = EncoderPlan(spec, str(weights), device, cores, preprocessing, None)
    loaded = load_device(plan) if device == "cuda" else _load_on_processor(plan, encoder.network)
    seconds = 10.0 if device == "cuda" else 0.2
    forward = measure_forward(loaded, preprocessing.size, batch, seconds)
    result: dict[str, Any] = {"precision": loaded.precision, "forward": forward}
    result["compiled"] = measure_compiled(plan, batch, device, seconds)
    result["least_cosine"] = least_cosine(loaded, encoder.network, plan, min(batch, 16))
    result["decode"] = measure_decoding(plan, shards, cores)
    result |= measure_embedding(plan, folder / f"out-{model}", shards, batch, cores)
    result["of_forward"] = result["images_per_second"] / result["forward"]
    result["of_decode"] = result["images_per_second"] / result["decode"]
    result["loop"] = measure_loop(model, edge, shards, batch, cores, device)
    result["times_the_loop"] = result["images_per_second"] / result["loop"]
    result["met"] = result["least_cosine"] >= TARGETS["least_cosine"] and (
        device == "cpu"
        or result["of_forward"] >= TARGETS["of_forward"]
        or result["of_decode"] >= TARGETS["of_decode"]
        or result["images_per_second"] >= TARGETS["images_per_second"]
    )
    return result


def _load_on_processor(plan: EncoderPlan, network: Any) -> TorchDevice:
    """What runs on a GPU, on the processor: `load_device` gives it to all that follows."""
    from curate.stages.embed import device, feeding

    loaded = TorchDevice(network, plan.preprocessing, torch.device("cpu"))
    for module in (device, feeding):
        module.load_device = lambda plan: loaded  # type: ignore[assignment]
    return loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("output", nargs="?", default="gpu.json", help="the JSON file to write")
    output = Path(parser.parse_args().output)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = "gpu" if device == "cuda" else "toy"
    plan, cores = SIZES[size], cpu_count()
    if device == "cpu":
        torch.set_num_threads(1)  # cores of small machines are busy otherwise
    started = time.perf_counter()
    results: dict[str, Any] = {
        "size": size,
        "device": torch.cuda.get_device_name() if device == "cuda" else "processor",
        "cores": cores,
        "torch": torch.__version__,
    }

    def store(name: str, value: Any) -> None:
        results[name] = value
        results["met"] = results.get("met", True) and value["met"]
        results["seconds"] = time.perf_counter() - started
        output.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(value), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder, plan["shards"], plan["per_shard"])
        for model in plan["models"]:
            measured = measure_model(
                model, plan["edge"], folder, shards, plan["batch"], cores, device
            )
            store(model, measured)
        store("kmeans", measure_kmeans(*KMEANS[size], device))
        if importlib.util.find_spec("scipy"):
            store("pruning", measure_pruning(folder, PRUNING[size], device))
        else:
            store("pruning", {"met": False, "reason": "no scipy, for the intervals of validate"})
    print("met" if results["met"] else "not met", f"in {results['seconds']:.0f} s")


if __name__ == "__main__":
    import gpu  # by its name, by which other processes find its functions

    gpu.main()
