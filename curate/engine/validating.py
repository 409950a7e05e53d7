"""The work of `curate validate` for one arm: train its models, one for each seed, and see what they get right."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from curate import models
from curate.engine import training
from curate.engine.fitting import Inputs

LABEL_SMOOTHING = 0.1
FINE_TUNING = 0.25  # the learning rate of what is trained already, as a share of that from scratch


class Arm(NamedTuple):
    """Models that train on equally many samples; `subsets` is a file of places, int64 [m, k].

    Random arms of several selections are one where they drew the same samples.
    """

    arm: str
    selections: tuple[str | None, ...]
    keep: float
    seeds: list[int]
    epochs: int
    subsets: Path


class Task(NamedTuple):
    """Samples to train on or to test with: which of the inputs, a file of places int64 [n], and how many classes there are."""

    inputs: Inputs
    places: Path
    classes: int

    def presented(self, model: models.Model) -> int:
        """How many samples one model sees that trains on all of it."""
        rows = len(np.load(self.places, mmap_mode="r", allow_pickle=False))
        return rows * models.epochs(model, rows)


@dataclass(frozen=True)
class TrainArm:
    """The task: train the models of an arm; return for each a row of `trainings`, with what it got right by class.

    With a `transfer`, the models are then trained on that, with new last layers, and tested for it (Fig. 4B).
    """

    spec: str
    inputs: Inputs
    classes: int
    test: Task
    transfer: Task | None
    device: str

    def __call__(self, arm: Arm) -> list[dict[str, Any]]:
        model = dataclasses.replace(models.make(self.spec), label_smoothing=LABEL_SMOOTHING)
        subsets = np.load(arm.subsets, allow_pickle=False)
        data = self.inputs.data(model)
        begin = time.monotonic()
        stack = training.Stack(model, data.channels, self.classes, arm.seeds, self.device)
        training.train(stack, model, data, np.maximum(self.inputs.array("labels"), 0), subsets, arm.seeds, arm.epochs)
        if self.transfer:
            _fine_tune(stack, model, self.transfer, arm.seeds)
        seconds = (time.monotonic() - begin) / len(arm.seeds)
        places = np.load(self.test.places, allow_pickle=False)
        labels = torch.from_numpy(self.test.inputs.array("labels")[places])
        batches = training.predict(stack, self.test.inputs.data(model), len(arm.seeds), torch.from_numpy(places))
        logits = torch.cat([logits for logits, _ in batches], dim=1).cpu()
        right = (logits.argmax(2) == labels).numpy()
        totals = np.bincount(labels.numpy(), minlength=self.test.classes)
        return [
            {"arm": arm.arm, "selection": selection, "keep": arm.keep, "seed": seed, "num_samples": subsets.shape[1],
             "epochs": arm.epochs, "accuracy": float(right[place].mean()), "seconds": seconds,
             "loss": float(functional.cross_entropy(logits[place], labels)),
             "totals": totals, "rights": np.bincount(labels.numpy()[right[place]], minlength=self.test.classes)}
            for selection in arm.selections for place, seed in enumerate(arm.seeds)
        ]  # fmt: skip


def _fine_tune(stack: training.Stack, model: models.Model, task: Task, seeds: list[int]) -> None:
    """Train on, on all of another task, with new last layers."""
    places = np.load(task.places, allow_pickle=False)
    gentle = dataclasses.replace(model, learning_rate=model.learning_rate * FINE_TUNING)
    stack.renew_heads(task.classes, seeds)
    labels = np.maximum(task.inputs.array("labels"), 0)
    subsets = np.tile(places, (len(seeds), 1))
    training.train(stack, gentle, task.inputs.data(model), labels, subsets, seeds, models.epochs(model, len(places)))
