"""The work of `curate score` for one shard: load what the metric asks for, call it, write the scores. It knows no catalog."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import distances, engine, vectors
from curate.atomic import replacing
from curate.errors import CurateError
from curate.metrics import metrics

_BLOCK = 1024  # samples a call of the metric, so that [block, k] stays small for any shard and for k = 50,000


class Shard(NamedTuple):
    """The samples of one shard, int64 [n] each: ids in tar order, and labels as places in the sorted classes, −1 for none."""

    sample_ids: np.ndarray
    labels: np.ndarray
    vector_file: Path | None


class Block:
    """The samples of a shard that a metric is called for: those with a vector, if it asks for vectors."""

    def __init__(self, shard: Shard, distance: str, with_vectors: bool) -> None:
        ids = np.array([], np.int64)
        self._vectors = np.empty((0, 1), np.float32)
        if with_vectors and shard.vector_file:
            ids, rows = vectors.read(shard.vector_file)
            self._vectors = distances.prepared(rows, distance)
        # Another embedding may have brought samples into the corpus that this one lacks, and the reverse.
        self.chosen = np.isin(shard.sample_ids, ids) if with_vectors else np.ones(len(shard.sample_ids), bool)
        self.sample_ids, self.labels = shard.sample_ids[self.chosen], shard.labels[self.chosen]
        self._places = np.searchsorted(ids, self.sample_ids) if with_vectors else None

    @property
    def vectors(self) -> np.ndarray:
        return self._vectors[self._places]


# What a metric may ask for of the shard at hand, by the parameter's name; the stage has the table of what holds everywhere.
OF_SHARD: dict[str, Callable[[Block], np.ndarray]] = {
    "vectors": lambda block: block.vectors,
    "labels": lambda block: block.labels,
    "sample_ids": lambda block: block.sample_ids,
}


@dataclass(frozen=True)
class ScoreShard:
    """The task: score one shard, and write (sample_id, score) to `folder`. `shared` holds NAME.npy of what holds everywhere."""

    metric: str
    options: dict[str, Any]
    distance: str
    shared: Path
    folder: Path

    def __call__(self, shard: Shard) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        function = metrics[self.metric]
        inputs = inspect.signature(function).parameters
        block = Block(shard, self.distance, "vectors" in inputs)
        everywhere = {**self.options, **_arrays(self.shared)}
        here = {name: OF_SHARD[name](block) for name in inputs if name in OF_SHARD} if block.chosen.any() else {}
        found = np.empty(len(block.sample_ids))
        for start in range(0, len(found), _BLOCK):
            rows = slice(start, start + _BLOCK)
            scores = np.asarray(function(**{name: array[rows] for name, array in here.items()}, **everywhere))
            if scores.shape != found[rows].shape:
                raise CurateError(
                    f"the metric '{self.metric}' gave an array of shape {scores.shape} for {len(found[rows])} samples"
                )
            found[rows] = scores
        scores = np.full(len(shard.sample_ids), np.nan)
        scores[block.chosen] = found
        table = pa.table({"sample_id": shard.sample_ids, "score": pa.array(scores, mask=~np.isfinite(scores))})
        with replacing(self.folder / f"{shard.sample_ids[0]:016x}.parquet") as temporary:
            pq.write_table(table, temporary)
        engine.tick(len(scores))


@functools.lru_cache(maxsize=1)
def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that the stage left for its workers, read once in each."""
    return {file.stem: np.load(file, allow_pickle=False) for file in folder.glob("*.npy")}


@dataclass(frozen=True)
class SumClasses:
    """The task: the sum of each class's rows in one shard, float64 [classes, dim], and their counts; None without vectors."""

    num_classes: int
    distance: str

    def __call__(self, shard: Shard) -> tuple[np.ndarray, np.ndarray] | None:
        block = Block(shard, self.distance, with_vectors=True)
        known = block.labels >= 0
        if not known.any():
            return None
        sums = np.zeros((self.num_classes, block.vectors.shape[1]))
        np.add.at(sums, block.labels[known], block.vectors[known].astype(np.float64))
        return sums, np.bincount(block.labels[known], minlength=self.num_classes)
