"""The work of `curate score` for one shard: load what the metric asks for, call it, write the scores. It knows no catalog."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import distances, engine, metrics, probes, storage, vectors
from curate.atomic import replacing
from curate.errors import CurateError
from curate.metrics import influence

_BLOCK = 1024  # samples a call of the metric, so that [block, k] stays small for any shard and for k = 50,000


class Shard(NamedTuple):
    """The samples of one shard, int64 [n] each: ids in tar order, and labels as places in the sorted classes, −1 for none."""

    sample_ids: np.ndarray
    labels: np.ndarray
    vector_file: Path | None
    probe_files: tuple[Path, ...] = ()  # one for each part of the probe


@dataclass(frozen=True)
class Block:
    """Some samples of a shard, and what is known of each; `half` 0 or 1 looks at every second of the probe's models only."""

    sample_ids: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    parts: dict[Path, dict[str, np.ndarray]]
    half: int | None = None

    def __getitem__(self, rows: slice) -> "Block":
        parts = {path: {name: column[rows] for name, column in part.items()} for path, part in self.parts.items()}
        return dataclasses.replace(
            self, sample_ids=self.sample_ids[rows], labels=self.labels[rows], vectors=self.vectors[rows], parts=parts
        )

    def of_models(self, column: str) -> np.ndarray:
        """A column of the probe's parts, [n, m, …] over all models that have it. Raises CurateError if none has."""
        found = [part[column] for part in self.parts.values() if column in part]
        if not found:
            name = next(iter(self.parts)).parent.parent.parent.name
            raise CurateError(f"the models of the probe '{name}' have no {column}: choose another probe with --probe")
        return self._halved(np.concatenate(found, axis=1))

    @property
    def of_architectures(self) -> np.ndarray:
        """What the first model of each architecture gets right: bool [n, architectures]."""
        first = [part["correct"][:, :1] for path, part in self.parts.items() if path.parent.name.endswith("-000000")]
        return self._halved(np.concatenate(first, axis=1))

    @property
    def influence(self) -> np.ndarray:
        """The influence of each sample on each test sample, float [n, t]."""
        tests = [_test(path.parent) for path in self.parts]
        part, test = next(iter(self.parts.values())), tests[0]
        if "leave_one_out" in part:
            effects = influence.of_leave_one_out(part["leave_one_out"], test["rows"], test["outputs"], test["labels"])
            return self._halved(effects[:, test["labels"] >= 0])
        test_correct = np.concatenate([test["correct"][:, test["labels"] >= 0] for test in tests])
        return influence.of_subsets(self.of_models("was_trained_on"), self._halved(test_correct.T).T)

    def _halved(self, array: np.ndarray) -> np.ndarray:
        return array if self.half is None else array[:, self.half :: 2]


@functools.lru_cache(maxsize=64)
def _test(part: Path) -> dict[str, np.ndarray]:
    return probes.read_test(part)


# What a metric may ask for of the shard at hand, by the parameter's name; the stage has the table of what holds everywhere.
OF_SHARD: dict[str, Callable[[Block], np.ndarray]] = {
    "vectors": lambda block: block.vectors,
    "labels": lambda block: block.labels,
    "sample_ids": lambda block: block.sample_ids,
    "probabilities": lambda block: block.of_models("probabilities").astype(np.float32),
    "correct": lambda block: block.of_models("correct"),
    "was_trained_on": lambda block: block.of_models("was_trained_on"),
    "history": lambda block: block.of_models("history"),
    "margins": lambda block: block.of_models("margins"),
    "feature_norms": lambda block: block.of_models("feature_norms"),
    "correct_by_architecture": lambda block: block.of_architectures,
    "influence": lambda block: block.influence,
}
# Which of them come from a probe, and the columns that they need.
PROBED = {
    name: (name,) for name in ("probabilities", "correct", "was_trained_on", "history", "margins", "feature_norms")
} | {"correct_by_architecture": ("correct",), "influence": ("leave_one_out", "was_trained_on")}  # fmt: skip


def load(shard: Shard, inputs: list[str], distance: str) -> tuple[np.ndarray, Block]:
    """Which samples of a shard can be scored, bool [n], and what is known of them."""
    ids = np.array([], np.int64)
    rows: np.ndarray = np.empty((0, 1), np.float32)
    chosen = np.ones(len(shard.sample_ids), bool)
    with_vectors = "vectors" in inputs
    if with_vectors:
        if shard.vector_file:
            ids, rows = vectors.read(shard.vector_file)
        # Another embedding may have brought samples into the corpus that this one lacks, and the reverse.
        chosen = np.isin(shard.sample_ids, ids)
    columns = sorted({column for name in inputs for column in PROBED.get(name, ())})
    found = {path: probes.read(path, columns) for path in shard.probe_files}
    if columns:
        chosen &= np.isin(shard.sample_ids, next(iter(found.values()))[0] if found else [])
    wanted = shard.sample_ids[chosen]
    parts = {path: {name: column[np.searchsorted(known, wanted)] for name, column in part.items()}
             for path, (known, part) in found.items()}  # fmt: skip
    rows = distances.prepared(rows[np.searchsorted(ids, wanted)], distance) if with_vectors else np.empty((len(wanted), 0))
    return chosen, Block(wanted, shard.labels[chosen], rows, parts)


@dataclass(frozen=True)
class ScoreShard:
    """The task: score one shard, write what the metric says of each sample to a file in `folder`, and return its name.

    `shared` are files NAME.npy of what holds everywhere. With `halves` the metric is called for each half of the
    models too, so that the stage can tell how far the two agree.
    """

    metric: str
    options: dict[str, Any]
    distance: str
    shared: tuple[Path, ...]
    folder: Path
    halves: bool = False

    def __call__(self, shard: Shard) -> str:
        import pyarrow as pa
        import pyarrow.parquet as pq

        inputs = list(inspect.signature(metrics.find(self.metric)).parameters)
        chosen, block = load(shard, inputs, self.distance)
        names = ["score", "standard_error"] + ["half_0", "half_1"] * self.halves
        found = np.full((len(names), len(shard.sample_ids)), np.nan)
        places = np.flatnonzero(chosen)
        for start in range(0, len(places), _BLOCK):
            rows = slice(start, start + _BLOCK)
            here = [self._scores(block[rows], inputs)]
            if self.halves:
                here += [self._scores(dataclasses.replace(block[rows], half=half), inputs)[:1] for half in (0, 1)]
            found[:, places[rows]] = np.concatenate(here)
        table = {name: pa.array(values, mask=~np.isfinite(values)) for name, values in zip(names, found, strict=True)}
        name = f"{shard.sample_ids[0]:016x}.parquet"
        with replacing(self.folder / name) as temporary:
            pq.write_table(pa.table({"sample_id": shard.sample_ids} | table), temporary)
        engine.tick(len(shard.sample_ids))
        return name

    def _scores(self, block: Block, inputs: list[str]) -> np.ndarray:
        """Scores and standard errors, [2, n]; a metric that gives no errors has NaN there."""
        here = {name: OF_SHARD[name](block) for name in inputs if name in OF_SHARD}
        result = metrics.find(self.metric)(**here, **self.options, **_arrays(self.shared))
        scores, errors = result if isinstance(result, tuple) else (result, np.full(len(block.sample_ids), np.nan))
        for array in (scores, errors):
            if np.shape(array) != block.sample_ids.shape:
                raise CurateError(f"the metric '{self.metric}' gave an array of shape {np.shape(array)} "
                                  f"for {len(block.sample_ids)} samples")  # fmt: skip
        return np.stack([scores, errors]).astype(np.float64)


@functools.lru_cache(maxsize=1)
def _arrays(shared: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """The arrays that the stage left for its workers, read once in each."""
    with storage.local(shared) as files:
        return {file.stem: np.load(file, allow_pickle=False) for file in files}


@dataclass(frozen=True)
class SumClasses:
    """The task: the sum of each class's rows in one shard, float64 [classes, dim], and their counts; None without vectors."""

    num_classes: int
    distance: str

    def __call__(self, shard: Shard) -> tuple[np.ndarray, np.ndarray] | None:
        _, block = load(shard, ["vectors"], self.distance)
        known = block.labels >= 0
        if not known.any():
            return None
        sums = np.zeros((self.num_classes, block.vectors.shape[1]))
        np.add.at(sums, block.labels[known], block.vectors[known].astype(np.float64))
        return sums, np.bincount(block.labels[known], minlength=self.num_classes)
