"""The work of `curate probe` for one part: train its models, and write what they predict.

It knows no catalog. A part is a folder that appears when it is whole (formats/probe_outputs.py).
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.formats.probe_outputs import (
    ModelSummary,
    PartSummary,
    read_summary,
    write_outputs,
    write_summary,
    write_test_outputs,
)
from curate.formats.sample_ids import shard_filename, shard_of
from curate.models import make_model
from curate.random_hash import random_bits
from curate.storage.atomic import fsync, temporary_path
from curate.storage.checksums import file_checksum
from curate.training.inputs import TrainingInputs
from curate.training.model_fit import FitRequest, fit_models


class ProbePart(NamedTuple):
    """Models of one architecture that are trained together."""

    name: str
    spec: str
    seeds: list[int]


@dataclass(frozen=True)
class TrainPart:
    """The task: train one part, if its folder below `out` does not exist; returns its models."""

    inputs: TrainingInputs
    test: TrainingInputs | None
    num_classes: int
    fraction: float
    folds: int | None
    first_seed: int  # that of the first model of each architecture
    epochs: int
    device: str
    out: Path
    gradient_size: int | None = None

    def __call__(self, part: ProbePart) -> list[ModelSummary]:
        if not (self.out / part.name).is_dir():
            self._write_part(part)
        return read_summary(self.out / part.name).models

    def _write_part(self, part: ProbePart) -> None:
        target = self.out / part.name
        temporary = temporary_path(target)
        temporary.mkdir(parents=True)
        models = self._train(part, temporary)
        shards = [shard_id for shard_id, _ in _iterate_shards(self.inputs.sample_ids)]
        checksums = {path.name: file_checksum(path) for path in sorted(temporary.iterdir())}
        write_summary(temporary, PartSummary(shards, models, checksums))
        for path in (*temporary.iterdir(), temporary):
            fsync(path)
        try:
            os.replace(temporary, target)
        except OSError:  # a first attempt, on a machine that was given up, has finished after all
            if not target.is_dir():
                raise
            shutil.rmtree(temporary)
        fsync(self.out)

    def _train(self, part: ProbePart, folder: Path) -> list[ModelSummary]:
        """Fit the models, and write a file for each shard and one for the test samples."""
        sample_ids, labels = self.inputs.sample_ids, self.inputs.labels
        if self.folds:
            draws = [
                draw_all_but_one_fold(
                    sample_ids, labels, self.folds, seed - self.first_seed, self.first_seed
                )
                for seed in part.seeds
            ]
        else:
            draws = [draw_subset(sample_ids, labels, self.fraction, seed) for seed in part.seeds]
        subsets = np.stack(draws)
        on_all_rows = self.fraction == 1 and not self.folds
        request = FitRequest(
            make_model(part.spec, self.fraction),
            self.inputs,
            subsets,
            part.seeds,
            self.num_classes,
            self.epochs,
            self.device,
            on_all_rows=on_all_rows,
            test=self.test,
            gradient_size=self.gradient_size,
        )
        started = time.monotonic()
        fitted = fit_models(request)
        seconds = (time.monotonic() - started) / len(part.seeds)
        was_trained_on = np.zeros((len(sample_ids), len(part.seeds)), bool)
        np.put_along_axis(was_trained_on, subsets.T, True, axis=0)
        correct = np.empty_like(was_trained_on)
        for shard_id, rows in _iterate_shards(sample_ids):
            correct[rows], columns = fitted.predict_rows(rows)
            columns["correct"] = correct[rows]
            if not on_all_rows:
                columns["was_trained_on"] = was_trained_on[rows]
            write_outputs(folder / shard_filename(shard_id), sample_ids[rows], columns)
        test_correct = np.empty((len(part.seeds), 0), bool)
        if self.test:
            test_outputs = fitted.predict_test(self.test)
            write_test_outputs(folder, test_outputs)
            test_correct = test_outputs["correct"]
        was_left_out = ~was_trained_on & (labels >= 0)[:, None]
        return [
            ModelSummary(
                part=part.name,
                model=part.spec,
                seed=seed,
                accuracy=_mean(correct[was_trained_on[:, index], index]),
                left_out_accuracy=_mean(correct[was_left_out[:, index], index]),
                test_accuracy=_mean(test_correct[index]),
                seconds=seconds,
            )
            for index, seed in enumerate(part.seeds)
        ]


def draw_subset(
    sample_ids: np.ndarray, labels: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Row indices of a random fraction of the labelled samples, by a hash of their ids.

    int64 [round(fraction · n)].
    """
    labelled = np.flatnonzero(labels >= 0)
    count = round(fraction * len(labelled))
    if count == len(labelled):
        return labelled
    bits = random_bits(sample_ids[labelled], seed)
    return np.sort(labelled[np.argpartition(bits, count)[:count]])


def draw_all_but_one_fold(
    sample_ids: np.ndarray, labels: np.ndarray, folds: int, index: int, seed: int
) -> np.ndarray:
    """Row indices of the labelled samples without a fold, another for each of `folds` models.

    int64 [n − ceil(n / folds)] for model `index`. The folds are ranges in the order of a hash of
    the ids; every `folds` models have another order. Where they cannot be equal, some overlap by a
    sample.
    """
    labelled = np.flatnonzero(labels >= 0)
    repetition, fold = divmod(index, folds)
    order = labelled[np.argsort(random_bits(sample_ids[labelled], seed + repetition))]
    size = -(-len(order) // folds)
    return np.sort(np.roll(order, -(fold * len(order) // folds))[size:])


def _iterate_shards(sample_ids: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each shard's id and rows."""
    shard_ids = shard_of(sample_ids)
    bounds = [0, *(np.flatnonzero(np.diff(shard_ids)) + 1).tolist(), len(sample_ids)]
    for start, stop in itertools.pairwise(bounds):
        yield int(shard_ids[start]), slice(start, stop)


def _mean(correct: np.ndarray) -> float | None:
    return float(correct.mean()) if correct.size else None
