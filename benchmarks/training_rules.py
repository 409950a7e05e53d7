r"""Which rule trains heads well on every number of samples? The table behind `num_epochs`.

    curate embed '../shared/data/cifar10/cifar10-train-*.tar' --encoder efficientnet_lite0@128 \
        -c curated-scaling
    python benchmarks/training_rules.py curated-scaling

A rule says how many epochs there are, and how many samples are in a batch, for a number of samples.
For each rule and size it prints the accuracy on a fifth of the corpus, held out at random, the mean
of five seeds, each with samples of its own; and the steps of a training. A star marks the rules
within half a point of the best of their column.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.catalog.samples import class_to_index, load_labels
from curate.models import make_model, steps_per_epoch
from curate.stages.training_data import write_training_data
from curate.stages.validate.worker import LABEL_SMOOTHING
from curate.training import loop
from curate.training.inputs import TrainingInputs

SIZES = (150, 500, 1500, 5000, 15_000, 40_000)
SEEDS = [0, 1, 2, 3, 4]
MODEL = replace(make_model("mlp"), label_smoothing=LABEL_SMOOTHING)


def own_steps(num_rows: int) -> int:
    return steps_per_epoch(MODEL, num_rows)


def in_batches(size: int) -> Callable[[int], int]:
    return lambda num_rows: -(-num_rows // size)


# From a number of samples to epochs and steps per epoch.
RULES: dict[str, Callable[[int], tuple[int, int]]] = {
    "10 epochs of 16 steps or more": lambda n: (10, own_steps(n)),
    "the same, but 250 steps or more": lambda n: (max(10, -(-250 // own_steps(n))), own_steps(n)),
    "20 epochs of 16 steps or more": lambda n: (20, own_steps(n)),
    "10 epochs in batches of 256": lambda n: (10, in_batches(256)(n)),
    "10 epochs in batches of 64": lambda n: (10, in_batches(64)(n)),
    "500 steps of 256": lambda n: (max(round(500 / in_batches(256)(n)), 1), in_batches(256)(n)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("catalog", type=Path)
    catalog = Catalog(parser.parse_args().catalog)
    embedding = catalog.require(EmbeddingRecord, None).embedding
    classes = class_to_index(catalog)
    with tempfile.TemporaryDirectory() as name:
        inputs = TrainingInputs(Path(name) / "corpus")
        labels_of = functools.partial(load_labels, catalog, classes=classes)
        write_training_data(catalog, embedding, inputs.folder, [MODEL], labels_of)
        rows = np.random.default_rng(0).permutation(np.flatnonzero(inputs.labels >= 0))
        held_out, rows = np.split(rows, [len(rows) // 5])
        sizes = [size for size in SIZES if size <= len(rows)]
        results = {
            name: [
                (measure(inputs, len(classes), held_out, rows, size, *rule(size)), rule(size))
                for size in sizes
            ]
            for name, rule in RULES.items()
        }
    best = [max(column)[0] for column in zip(*results.values(), strict=True)]
    print("| rule | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for name, cells in results.items():
        print(f"| {name} | " + " | ".join(format_cells(cells, best)) + " |")


def measure(
    inputs: TrainingInputs,
    num_classes: int,
    held_out: np.ndarray,
    rows: np.ndarray,
    size: int,
    epochs: int,
    steps: int,
) -> float:
    """The accuracy on `held_out` after training on `size` of the rows, in percent."""
    data, labels = inputs.data_for(MODEL), np.maximum(inputs.labels, 0)
    subsets = np.stack([np.random.default_rng(seed).permutation(rows)[:size] for seed in SEEDS])
    stack = loop.Stack(MODEL, data.channels, num_classes, SEEDS, "cpu")
    with mock.patch.object(loop, "steps_per_epoch", lambda *_: steps):
        loop.train(stack, MODEL, data, labels, subsets, SEEDS, epochs)
    batches = loop.predict(stack, data, len(SEEDS), torch.from_numpy(held_out))
    logits = torch.cat([batch_logits for batch_logits, _ in batches], dim=1)
    return 100 * float((logits.argmax(2).numpy() == inputs.labels[held_out]).mean())


def format_cells(cells: list[tuple[float, tuple[int, int]]], best: list[float]) -> Iterator[str]:
    for (accuracy, (epochs, steps)), highest in zip(cells, best, strict=True):
        star = "*" if accuracy > highest - 0.5 else ""
        yield f"{accuracy:.1f}{star} ({epochs * steps:,} steps)"


if __name__ == "__main__":
    main()
