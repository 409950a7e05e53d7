"""The work of `curate validate` for one arm, or for all: train models and test them, or measure.

It knows no catalog. There is one callable for each kind of task.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from curate.execution.reporting import report_progress
from curate.models import Model, make_model, num_epochs
from curate.training import contrastive, loop, nearest, self_supervised
from curate.training.inputs import TrainingInputs

LABEL_SMOOTHING = 0.1
# The learning rate of fine-tuning, as a share of that from scratch.
FINE_TUNING_RATE = 0.25
# How many held-out samples the whole corpus covers, which says how near is near enough.
COVERED_SHARE = 0.95


class Arm(NamedTuple):
    """Models that train on equally many samples; `subsets` is a file of row indices int64 [m, k].

    Random arms of several selections are one arm where they drew the same samples. `weights` is a
    file with a weight for each row of the inputs, float32 [n].
    """

    name: str
    selections: tuple[str | None, ...]
    keep: float
    seeds: list[int]
    epochs: int
    subsets: Path
    weights: Path | None = None

    def load_subsets(self) -> np.ndarray:
        return np.asarray(np.load(self.subsets, mmap_mode="r", allow_pickle=False))


class TaskData(NamedTuple):
    """Samples to train on or to test with: a file of row indices int64 [n] into the inputs.

    `name` is that of the test set.
    """

    name: str
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
class ArmResult:
    """How one model of an arm did on one test set: which samples it was right on, bool [n].

    `labels` are the test samples' classes, int64 [n], where there are classes.
    """

    arm: str
    selection: str | None
    keep: float
    seed: int
    num_samples: int
    epochs: int
    seconds: float
    test: str
    is_correct: np.ndarray
    loss: float
    labels: np.ndarray | None = None
    distance_99: float | None = None  # the 99th percentile of the distances, of coverage


def _make_results(
    arm: Arm,
    test: str,
    is_correct: np.ndarray,
    losses: Sequence[float],
    *,
    num_samples: int,
    epochs: int,
    seconds: float = 0.0,
    labels: np.ndarray | None = None,
    distances_99: Sequence[float] | None = None,
) -> list[ArmResult]:
    """How the models of an arm did on a test set, bool [m, n], for each selection of the arm."""
    return [
        ArmResult(
            arm=arm.name,
            selection=selection,
            keep=arm.keep,
            seed=seed,
            num_samples=num_samples,
            epochs=epochs,
            seconds=seconds,
            test=test,
            is_correct=is_correct[index],
            loss=float(losses[index]),
            labels=labels,
            distance_99=float(distances_99[index]) if distances_99 is not None else None,
        )
        for selection in arm.selections
        for index, seed in enumerate(arm.seeds)
    ]


@dataclass(frozen=True)
class TrainArm:
    """The task: train the models of an arm, and test each on every test set.

    With `transfer`, the models are then trained on that, with new last layers, and tested for it
    (Fig. 4B of Sorscher et al. 2022).
    """

    model: str
    inputs: TrainingInputs
    num_classes: int
    tests: tuple[TaskData, ...]
    transfer: TaskData | None
    device: str

    def __call__(self, arm: Arm) -> list[ArmResult]:
        model = replace(make_model(self.model), label_smoothing=LABEL_SMOOTHING)
        subsets = np.load(arm.subsets, allow_pickle=False)
        data = self.inputs.data_for(model)
        started = time.monotonic()
        stack = loop.Stack(model, data.channels, self.num_classes, arm.seeds, self.device)
        targets = np.maximum(self.inputs.labels, 0)
        weights = np.load(arm.weights, allow_pickle=False) if arm.weights else None
        loop.train(stack, model, data, targets, subsets, arm.seeds, arm.epochs, weights=weights)
        if self.transfer:
            _fine_tune(stack, model, self.transfer, arm.seeds)
        seconds = (time.monotonic() - started) / len(arm.seeds)
        results = []
        for test in self.tests:
            rows = np.load(test.row_file, allow_pickle=False)
            labels = torch.from_numpy(test.inputs.labels[rows])
            test_data = test.inputs.data_for(model)
            batches = loop.predict(stack, test_data, len(arm.seeds), torch.from_numpy(rows))
            logits = torch.cat([batch_logits for batch_logits, _ in batches], dim=1).cpu()
            is_correct = (logits.argmax(2) == labels).numpy()
            results += _make_results(
                arm,
                test.name,
                is_correct,
                [float(functional.cross_entropy(model_logits, labels)) for model_logits in logits],
                num_samples=subsets.shape[1],
                epochs=arm.epochs,
                seconds=seconds,
                labels=labels.numpy(),
            )
        return results


def _fine_tune(stack: loop.Stack, model: Model, task: TaskData, seeds: list[int]) -> None:
    """Train on all of another task, with new last layers."""
    rows = np.load(task.row_file, allow_pickle=False)
    slow_model = replace(model, learning_rate=model.learning_rate * FINE_TUNING_RATE)
    stack.replace_heads(task.num_classes, seeds)
    labels = np.maximum(task.inputs.labels, 0)
    subsets = np.tile(rows, (len(seeds), 1))
    data, epochs = task.inputs.data_for(model), num_epochs(model, len(rows))
    loop.train(stack, slow_model, data, labels, subsets, seeds, epochs)


class PairData(NamedTuple):
    """Pairs of images and captions to test with: vectors [t, d] and [t, e], and caption numbers.

    Equal captions have one number. `name` is that of the test set.
    """

    name: str
    images: Path
    texts: Path
    caption_ids: Path


@dataclass(frozen=True)
class TrainProjection:
    """The task captions: train projection heads on an arm's pairs, and test what they retrieve."""

    images: Path  # .npy, float16 [n, d]
    texts: Path  # .npy, float16 [n, e]
    tests: tuple[PairData, ...]
    device: str

    def __call__(self, arm: Arm) -> list[ArmResult]:
        subsets = arm.load_subsets()
        started = time.monotonic()
        heads = contrastive.train_projection(
            _load_array(self.images),
            _load_array(self.texts),
            subsets,
            arm.seeds,
            arm.epochs,
            self.device,
        )
        seconds = (time.monotonic() - started) / len(arm.seeds)
        results = []
        for test in self.tests:
            hits = contrastive.retrieval_hits(
                heads,
                _load_array(test.images),
                _load_array(test.texts),
                _load_array(test.caption_ids),
            )
            for kind, hits_of_kind in (
                ("image to text @1", hits.image_to_text_1),
                ("image to text @5", hits.image_to_text_5),
                ("text to image @1", hits.text_to_image_1),
                ("text to image @5", hits.text_to_image_5),
            ):
                results += _make_results(
                    arm,
                    f"{test.name}, {kind}",
                    hits_of_kind,
                    1 - hits_of_kind.mean(axis=1),
                    num_samples=subsets.shape[1],
                    epochs=arm.epochs,
                    seconds=seconds,
                )
        return results


@dataclass(frozen=True)
class TrainWithoutLabels:
    """The task self-supervised: train on an arm's images, then a linear layer on another task."""

    model: str
    inputs: TrainingInputs
    tests: tuple[TaskData, ...]
    transfer: TaskData
    device: str

    def __call__(self, arm: Arm) -> list[ArmResult]:
        model = self_supervised.self_supervised_model(self.model)
        (rows,), (seed,) = np.array(arm.load_subsets()), arm.seeds
        started = time.monotonic()
        steps = arm.epochs  # every arm trains for as many
        data = self.inputs.data_for(model)
        network = self_supervised.pretrain(model, data, rows, seed, steps, self.device)
        seconds = time.monotonic() - started
        train = self.transfer
        train_rows = train.load_rows()
        train_features = self._features(network, model, train)
        results = []
        for test in self.tests:
            labels = np.asarray(test.inputs.labels[test.load_rows()])
            scores = self_supervised.linear_probe(
                train_features,
                np.asarray(train.inputs.labels[train_rows]),
                self._features(network, model, test),
                test.num_classes,
            )
            results += _make_results(
                arm,
                test.name,
                (scores.argmax(axis=1) == labels)[None],
                [-scores[np.arange(len(labels)), labels].mean()],
                num_samples=len(rows),
                epochs=max(round(steps * model.batch_size / len(rows)), 1),
                seconds=seconds,
                labels=labels,
            )
        return results

    def _features(self, network: torch.nn.Module, model: Model, task: TaskData) -> np.ndarray:
        data = task.inputs.data_for(model)
        rows = np.array(task.load_rows())  # torch takes no read-only array
        return self_supervised.features(network, data, rows, self.device)


class HeldOut(NamedTuple):
    """Held-out samples: sorted ids, a .npy of int64 [t], and files with their vectors.

    `files` is None for samples of the corpus itself. `name` is that of the test set.
    """

    name: str
    sample_ids: Path
    files: tuple[str, ...] | None


@dataclass(frozen=True)
class MeasureCoverage:
    """The task coverage: how far held-out samples are from the nearest one of each arm.

    A held-out sample is covered by an arm that has a sample as near as everything has for 95% of
    the held-out samples. All arms are measured in one pass over the vectors.
    """

    files: tuple[str, ...]
    sample_ids: Path  # .npy, int64 [n], of the rows that arms are made of
    tests: tuple[HeldOut, ...]

    def __call__(self, arms: tuple[Arm, ...]) -> list[ArmResult]:
        all_ids = _load_array(self.sample_ids)
        members = [
            [np.sort(all_ids[rows]) for rows in _distinct_subsets(arm.load_subsets())]
            for arm in arms
        ]
        results = []
        for test in self.tests:
            distances = nearest.nearest_distances(
                self.files,
                _load_array(test.sample_ids),
                [all_ids, *(ids for arm_members in members for ids in arm_members)],
                report_progress,
                test_files=test.files,
            )
            radius, start = np.quantile(distances[0], COVERED_SHARE), 1
            for arm, arm_members in zip(arms, members, strict=True):
                arm_distances = distances[start : start + len(arm_members)]
                start += len(arm_members)
                if len(arm_members) < len(arm.seeds):
                    arm_distances = np.repeat(arm_distances, len(arm.seeds), axis=0)
                results += _make_results(
                    arm,
                    test.name,
                    arm_distances <= radius,
                    arm_distances.mean(axis=1),
                    num_samples=len(arm_members[0]),
                    epochs=0,
                    distances_99=np.quantile(arm_distances, 0.99, axis=1),
                )
        return results


def _distinct_subsets(subsets: np.ndarray) -> np.ndarray:
    """One of the subsets where all are the same, as those of full and of a selection are."""
    return subsets[:1] if (subsets == subsets[0]).all() else subsets


def _load_array(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
