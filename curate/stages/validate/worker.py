"""The work of `curate validate` for one arm: train its models, one for each seed, and test them.

It knows no catalog.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from curate.models import Model, make_model, num_epochs
from curate.training import loop
from curate.training.inputs import TrainingInputs

LABEL_SMOOTHING = 0.1
# The learning rate of fine-tuning, as a share of that from scratch.
FINE_TUNING_RATE = 0.25


class Arm(NamedTuple):
    """Models that train on equally many samples; `subsets` is a file of row indices int64 [m, k].

    Random arms of several selections are one arm where they drew the same samples.
    """

    name: str
    selections: tuple[str | None, ...]
    keep: float
    seeds: list[int]
    epochs: int
    subsets: Path

    def load_subsets(self) -> np.ndarray:
        return np.asarray(np.load(self.subsets, mmap_mode="r", allow_pickle=False))


class TaskData(NamedTuple):
    """Samples to train on or to test with: a file of row indices int64 [n] into the inputs."""

    inputs: TrainingInputs
    row_file: Path
    num_classes: int

    def load_rows(self) -> np.ndarray:
        return np.asarray(np.load(self.row_file, mmap_mode="r", allow_pickle=False))

    def num_presentations(self, model: Model) -> int:
        """How many samples one model sees that trains on all of it."""
        num_rows = len(self.load_rows())
        return num_rows * num_epochs(model, num_rows)


@dataclass(frozen=True)
class TrainedModel:
    """How one model of an arm did on the test samples; class counts are int64 [classes]."""

    arm: str
    selection: str | None
    keep: float
    seed: int
    num_samples: int
    epochs: int
    accuracy: float
    loss: float
    seconds: float
    class_totals: np.ndarray
    class_correct: np.ndarray


@dataclass(frozen=True)
class TrainArm:
    """The task: train the models of an arm.

    With `transfer`, the models are then trained on that, with new last layers, and tested for it
    (Fig. 4B of Sorscher et al. 2022).
    """

    model: str
    inputs: TrainingInputs
    num_classes: int
    test: TaskData
    transfer: TaskData | None
    device: str

    def __call__(self, arm: Arm) -> list[TrainedModel]:
        model = replace(make_model(self.model), label_smoothing=LABEL_SMOOTHING)
        subsets = np.load(arm.subsets, allow_pickle=False)
        data = self.inputs.data_for(model)
        started = time.monotonic()
        stack = loop.Stack(model, data.channels, self.num_classes, arm.seeds, self.device)
        targets = np.maximum(self.inputs.labels, 0)
        loop.train(stack, model, data, targets, subsets, arm.seeds, arm.epochs)
        if self.transfer:
            _fine_tune(stack, model, self.transfer, arm.seeds)
        seconds = (time.monotonic() - started) / len(arm.seeds)
        rows = np.load(self.test.row_file, allow_pickle=False)
        labels = torch.from_numpy(self.test.inputs.labels[rows])
        test_data = self.test.inputs.data_for(model)
        batches = loop.predict(stack, test_data, len(arm.seeds), torch.from_numpy(rows))
        logits = torch.cat([batch_logits for batch_logits, _ in batches], dim=1).cpu()
        correct = (logits.argmax(2) == labels).numpy()
        num_classes = self.test.num_classes
        class_totals = np.bincount(labels.numpy(), minlength=num_classes)
        return [
            TrainedModel(
                arm=arm.name,
                selection=selection,
                keep=arm.keep,
                seed=seed,
                num_samples=subsets.shape[1],
                epochs=arm.epochs,
                accuracy=float(correct[index].mean()),
                loss=float(functional.cross_entropy(logits[index], labels)),
                seconds=seconds,
                class_totals=class_totals,
                class_correct=np.bincount(labels.numpy()[correct[index]], minlength=num_classes),
            )
            for selection in arm.selections
            for index, seed in enumerate(arm.seeds)
        ]


def _fine_tune(stack: loop.Stack, model: Model, task: TaskData, seeds: list[int]) -> None:
    """Train on all of another task, with new last layers."""
    rows = np.load(task.row_file, allow_pickle=False)
    slow_model = replace(model, learning_rate=model.learning_rate * FINE_TUNING_RATE)
    stack.replace_heads(task.num_classes, seeds)
    labels = np.maximum(task.inputs.labels, 0)
    subsets = np.tile(rows, (len(seeds), 1))
    data, epochs = task.inputs.data_for(model), num_epochs(model, len(rows))
    loop.train(stack, slow_model, data, labels, subsets, seeds, epochs)
