"""What `conv` learns without labels from 5,000 images of CIFAR-10, on one core.

    python benchmarks/self_supervised.py [EPOCHS ...] [--data FOLDER] [--seed N]     (default: 40)

FOLDER has cifar10/*.tar. The network trains on the images of the first two shards. A linear layer
on its features is then trained on the labelled images of the next two, and tested on the 10,000
test images. The same is done before: what features of random weights are good for. Chance is 10%.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from conv import DEFAULT_DATA, NUM_CLASSES, load_images
from torch import nn

from curate.training import self_supervised
from curate.training.image_data import CachedImages

UNLABELLED, TRANSFER = slice(0, 2), slice(2, 4)  # shards of 2,500 images


def measure_accuracy(network: nn.Module, images: dict[str, CachedImages], labels: dict) -> float:
    """Of the linear layer, on the test images."""
    features = {
        name: self_supervised.features(network, images[name], np.arange(len(images[name])), "cpu")
        for name in ("transfer", "test")
    }
    logits = self_supervised.linear_probe(
        features["transfer"], labels["transfer"], features["test"], NUM_CLASSES
    )
    return float((logits.argmax(axis=1) == labels["test"]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("epochs", nargs="*", type=int, default=[40])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train_shards = sorted(arguments.data.glob("cifar10/cifar10-train-*.tar"))
        shards = {
            "unlabelled": train_shards[UNLABELLED],
            "transfer": train_shards[TRANSFER],
            "test": sorted(arguments.data.glob("cifar10/cifar10-test-*.tar")),
        }
        labels, images = {}, {}
        for name, paths in shards.items():
            cache = Path(folder) / f"{name}.npy"
            labels[name] = load_images(paths, cache)
            images[name] = CachedImages(cache)
        model, data = self_supervised.self_supervised_model("conv"), images["unlabelled"]
        network = self_supervised.untrained(model, data.channels, arguments.seed)
        accuracy = measure_accuracy(network, images, labels)
        print(f"random weights: test accuracy {accuracy:.4f}", flush=True)
        for epochs in arguments.epochs:
            start = time.process_time()
            rows, steps = np.arange(len(data)), epochs * (len(data) // model.batch_size)
            network = self_supervised.pretrain(model, data, rows, arguments.seed, steps, "cpu")
            seconds = time.process_time() - start
            accuracy = measure_accuracy(network, images, labels)
            print(
                f"{epochs} epochs, {steps:,} steps: {seconds:.0f} s of one core, "
                f"test accuracy {accuracy:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
