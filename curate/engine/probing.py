"""The work of `curate probe` for one part: train its models, and write what they say of every sample, a file a shard.

A part is a folder that appears when it is whole: PART/<shard_id>.parquet with the columns that metrics ask
for by name, PART/test.npz with what holds of the test samples, PART/part.json with the shards there are and the accuracies.
"""

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import models, probes, shuffle
from curate.atomic import beside, sync
from curate.engine import fitting
from curate.engine.fitting import Inputs, Work
from curate.fingerprints import of_file
from curate.shards import shard_of


class Part(NamedTuple):
    """Models of one architecture that are trained in one go."""

    name: str
    spec: str
    seeds: list[int]


@dataclass(frozen=True)
class TrainPart:
    """The task: train one part, if its folder below `out` is not there yet, and return a row for each of its models."""

    inputs: Inputs
    test: Inputs | None
    classes: int
    fraction: float
    epochs: int
    device: str
    out: Path

    def __call__(self, part: Part) -> list[dict[str, Any]]:
        if not (self.out / part.name).is_dir():
            self._make(part)
        return list(probes.summary(self.out / part.name)["models"])

    def _make(self, part: Part) -> None:
        temporary = beside(self.out / part.name)
        temporary.mkdir(parents=True)
        rows = self._write(part, temporary)
        shards = [shard_id for shard_id, _ in _shards(self.inputs.array("ids"))]
        fingerprints = {path.name: of_file(path) for path in sorted(temporary.iterdir())}
        summary = {"shards": shards, "models": rows, "fingerprints": fingerprints}
        (temporary / probes.SUMMARY).write_text(json.dumps(summary, indent=1))
        for file in (*temporary.iterdir(), temporary):
            sync(file)
        try:
            os.replace(temporary, self.out / part.name)
        except OSError:  # a first attempt, on a machine that was given up, came to its end after all
            if not (self.out / part.name).is_dir():
                raise
            shutil.rmtree(temporary)
        sync(self.out)

    def _write(self, part: Part, folder: Path) -> list[dict[str, Any]]:
        """Fit the models, write a file a shard and one for the test samples; return a row for each model."""
        ids, labels = self.inputs.array("ids"), self.inputs.array("labels")
        subsets = np.stack([subset(ids, labels, self.fraction, seed) for seed in part.seeds])
        work = Work(
            models.make(part.spec, self.fraction), self.inputs, subsets, part.seeds, self.classes, self.epochs, self.device,
            whole=self.fraction == 1, tested=self.test is not None,
        )  # fmt: skip
        begin = time.monotonic()
        fitted = fitting.fit(work)
        seconds = (time.monotonic() - begin) / len(part.seeds)
        trained = np.zeros((len(ids), len(part.seeds)), bool)
        np.put_along_axis(trained, subsets.T, True, axis=0)
        right = np.empty_like(trained)
        for shard_id, rows in _shards(ids):
            right[rows], columns = fitted.columns(rows)
            columns["correct"] = right[rows]
            if self.fraction < 1:
                columns["was_trained_on"] = trained[rows]
            probes.write(folder / f"{shard_id:08d}.parquet", ids[rows], columns)
        test = fitted.test(self.test) if self.test else {"correct": np.empty((len(part.seeds), 0), bool)}
        if self.test:
            np.savez(folder / probes.TEST, **test)
        left_out = ~trained & (labels >= 0)[:, None]
        return [
            {"part": part.name, "model": part.spec, "seed": seed, "accuracy": _mean(right[trained[:, place], place]),
             "left_out_accuracy": _mean(right[left_out[:, place], place]), "test_accuracy": _mean(test["correct"][place]),
             "seconds": seconds}
            for place, seed in enumerate(part.seeds)
        ]  # fmt: skip


def subset(ids: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The places of a random `fraction` of the labelled samples, by a hash of their ids: int64 [round(fraction · n)]."""
    labelled = np.flatnonzero(labels >= 0)
    count = round(fraction * len(labelled))
    if count == len(labelled):
        return labelled
    bits = shuffle.random_bits(ids[labelled], seed)
    return np.sort(labelled[np.argpartition(bits, count)[:count]])


def _shards(ids: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each shard's id and rows."""
    owners = shard_of(ids)
    bounds = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(ids)]
    for start, stop in itertools.pairwise(bounds):
        yield int(owners[start]), slice(start, stop)


def _mean(right: np.ndarray) -> float | None:
    return float(right.mean()) if right.size else None
