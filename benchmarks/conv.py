"""Test accuracy of `conv` on CIFAR-10 after so many seconds of training on one core.

    python benchmarks/conv.py [SECONDS ...] [--data FOLDER]        (default: 60 180)

FOLDER has cifar10/*.tar. How many samples per second the core trains is measured first, and the
schedule is laid out for the seconds given; what is printed is the time that training then took. The
peer is not another program but the clock.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from curate.models import make_model
from curate.training.image_data import CachedImages
from curate.training.loop import Stack, predict, train

DEFAULT_DATA = Path(os.environ.get("CURATE_DATA", "../shared/data"))
NUM_CLASSES = 10
SPEED_STEPS = 60  # steps by which the speed is measured


def load_images(shards: list[Path], cache: Path) -> np.ndarray:
    """Decode the shards' images into a cache of bytes, and return their labels."""
    images, labels = [], []
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
                else:
                    labels.append(int(data))
    np.save(cache, np.stack(images))
    return np.array(labels)


def train_for(
    num_presentations: int, data: CachedImages, labels: np.ndarray, seed: int
) -> tuple[Stack, float]:
    """Train for so many presentations of samples; returns the model and the seconds it took."""
    model = make_model("conv")
    epochs = -(-num_presentations // len(labels))
    num_rows = num_presentations // epochs
    subset = np.random.default_rng(seed).permutation(len(labels))[:num_rows]
    stack = Stack(model, data.channels, NUM_CLASSES, [seed], "cpu")
    start = time.monotonic()
    train(stack, model, data, labels, subset[None], [seed], epochs)
    return stack, time.monotonic() - start


def measure_accuracy(stack: Stack, data: CachedImages, labels: np.ndarray) -> float:
    batches = predict(stack, data, 1, torch.arange(len(data)))
    logits = torch.cat([batch_logits for batch_logits, _ in batches], dim=1)
    return float((logits[0].argmax(1).numpy() == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", nargs="*", type=float, default=[60, 180])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        labels, images = {}, {}
        for split in ("train", "test"):
            cache = Path(folder) / f"{split}.npy"
            shards = sorted(arguments.data.glob(f"cifar10/cifar10-{split}-*.tar"))
            labels[split] = load_images(shards, cache)
            images[split] = CachedImages(cache)
        num_measured = SPEED_STEPS * make_model("conv").batch_size
        for seconds in arguments.seconds:
            for _ in range(2):  # the first time also fills caches and compiles kernels
                _, measured_seconds = train_for(
                    num_measured, images["train"], labels["train"], arguments.seed
                )
            num_presentations = int(seconds * 0.95 * num_measured / measured_seconds)
            stack, training_seconds = train_for(
                num_presentations, images["train"], labels["train"], arguments.seed
            )
            accuracy = measure_accuracy(stack, images["test"], labels["test"])
            print(
                f"{seconds:g} s: {num_presentations:,} samples in {training_seconds:.1f} s, "
                f"test accuracy {accuracy:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
