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


@dataclass(frozen=True)
class TrainArm:
    """The task: train the models of an arm; return for each a row of `trainings`, with what it got right by class."""

    spec: str
    inputs: Inputs
    test: Inputs
    test_places: Path  # which of the test inputs count, int64 [t]
    classes: int
    device: str

    def __call__(self, arm: Arm) -> list[dict[str, Any]]:
        model = dataclasses.replace(models.make(self.spec), label_smoothing=LABEL_SMOOTHING)
        subsets = np.load(arm.subsets, allow_pickle=False)
        data = self.inputs.data(model)
        begin = time.monotonic()
        stack = training.Stack(model, data.channels, self.classes, arm.seeds, self.device)
        training.train(stack, model, data, np.maximum(self.inputs.array("labels"), 0), subsets, arm.seeds, arm.epochs)
        seconds = (time.monotonic() - begin) / len(arm.seeds)
        places = np.load(self.test_places, allow_pickle=False)
        labels = torch.from_numpy(self.test.array("labels")[places])
        batches = training.predict(stack, self.test.data(model), len(arm.seeds), torch.from_numpy(places))
        logits = torch.cat([logits for logits, _ in batches], dim=1).cpu()
        right = (logits.argmax(2) == labels).numpy()
        totals = np.bincount(labels.numpy(), minlength=self.classes)
        return [
            {"arm": arm.arm, "selection": selection, "keep": arm.keep, "seed": seed, "num_samples": subsets.shape[1],
             "epochs": arm.epochs, "accuracy": float(right[place].mean()), "seconds": seconds,
             "loss": float(functional.cross_entropy(logits[place], labels)),
             "totals": totals, "rights": np.bincount(labels.numpy()[right[place]], minlength=self.classes)}
            for selection in arm.selections for place, seed in enumerate(arm.seeds)
        ]  # fmt: skip
