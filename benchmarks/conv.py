"""Test accuracy of `conv` on CIFAR-10 after so many seconds of training on one core.

    python benchmarks/conv.py [SECONDS ...] [--data FOLDER]        (default: 60 180; FOLDER has cifar10/*.tar)

How many samples a second the core trains is measured first, and the schedule is laid out for the seconds given; what is
printed is the time that training then took. The peer is not another program but the clock.
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

from curate import models
from curate.engine import training
from curate.engine.pixels import Cached

WARM_UP = 60  # steps by which the speed is measured


def load(shards: list[Path], cache: Path) -> np.ndarray:
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


def fit(data: Cached, labels: np.ndarray, samples: int, seed: int) -> tuple[training.Stack, float]:
    """Train for so many presentations of samples, and say how long it took."""
    model = models.make("conv")
    epochs = -(-samples // len(labels))
    chosen = np.random.default_rng(seed).permutation(len(labels))[: samples // epochs][None]
    stack = training.Stack(model, data.channels, 10, [seed], "cpu")
    begin = time.monotonic()
    training.train(stack, model, data, labels, chosen, [seed], epochs)
    return stack, time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="*", type=float, default=[60, 180])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CURATE_DATA", "../shared/data")))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        caches = {split: Path(folder) / f"{split}.npy" for split in ("train", "test")}
        labels = {
            split: load(sorted(arguments.data.glob(f"cifar10/cifar10-{split}-*.tar")), path) for split, path in caches.items()
        }
        train, test = (Cached(path) for path in caches.values())
        for seconds in arguments.seconds:
            batch = models.make("conv").batch
            for _ in range(2):  # the first time is that of caches and kernels that are made
                _, measured = fit(train, labels["train"], WARM_UP * batch, arguments.seed)
            samples = int(seconds * 0.95 * WARM_UP * batch / measured)
            stack, took = fit(train, labels["train"], samples, arguments.seed)
            logits = torch.cat([found for found, _ in training.predict(stack, test, 1, torch.arange(len(test)))], dim=1)
            accuracy = (logits[0].argmax(1).numpy() == labels["test"]).mean()
            print(f"{seconds:g} s: {samples:,} samples in {took:.1f} s, test accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
