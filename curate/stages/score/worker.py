"""The work of `curate score` for one shard: load the metric's inputs, call it, write the scores.

It knows no catalog.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.stages.inputs.blocks import SHARD_INPUTS, SampleBlock, ShardSamples, load_block
from curate.stages.score.metric_lookup import find_metric, input_names
from curate.storage import files
from curate.storage.atomic import atomic_write

# Samples a call of the metric, so that [block, k] stays small for any shard and for k = 50,000.
_BLOCK_SAMPLES = 1024


@dataclass(frozen=True)
class ScoreShard:
    """The task: score one shard, write the scores to a file in `folder`, and return its name.

    `shared_files` are NAME.npy with what holds for the whole corpus. With `score_halves` the metric
    is called for each half of the models too, so that the stage can tell how far they agree.
    """

    metric: str
    options: dict[str, Any]
    distance: str
    shared_files: tuple[str, ...]
    folder: str
    score_halves: bool = False

    def __call__(self, shard: ShardSamples) -> str:
        import pyarrow as pa
        import pyarrow.parquet as pq

        inputs = input_names(self.metric)
        is_scorable, block = load_block(shard, inputs, self.distance)
        names = ["score", "standard_error"] + ["half_0", "half_1"] * self.score_halves
        columns = np.full((len(names), len(shard.sample_ids)), np.nan)
        row_indices = np.flatnonzero(is_scorable)
        for start in range(0, len(row_indices), _BLOCK_SAMPLES):
            rows = slice(start, start + _BLOCK_SAMPLES)
            scores = [self._score(block[rows], inputs)]
            if self.score_halves:
                halves = [replace(block[rows], half=half) for half in (0, 1)]
                scores += [self._score(half, inputs)[:1] for half in halves]
            columns[:, row_indices[rows]] = np.concatenate(scores)
        arrays = {
            name: pa.array(values, mask=~np.isfinite(values))
            for name, values in zip(names, columns, strict=True)
        }
        table = pa.table({"sample_id": shard.sample_ids} | arrays)
        name = f"{shard.sample_ids[0]:016x}.parquet"
        with atomic_write(files.join(self.folder, name)) as temporary:
            pq.write_table(table, temporary)
        report_progress(len(shard.sample_ids))
        return name

    def _score(self, block: SampleBlock, inputs: list[str]) -> np.ndarray:
        """Scores and standard errors, [2, n]; NaN where a metric gives no errors."""
        arguments = {name: SHARD_INPUTS[name](block) for name in inputs if name in SHARD_INPUTS}
        arguments |= dict(block.columns)
        shared = _load_shared(self.shared_files)
        result = find_metric(self.metric)(**arguments, **self.options, **shared)
        if isinstance(result, tuple):
            scores, errors = result
        else:
            scores, errors = result, np.full(len(block.sample_ids), np.nan)
        for array in (scores, errors):
            if np.shape(array) != block.sample_ids.shape:
                raise CurateError(
                    f"the metric '{self.metric}' gave an array of shape {np.shape(array)} "
                    f"for {len(block.sample_ids)} samples"
                )
        return np.stack([scores, errors]).astype(np.float64)


@functools.lru_cache(maxsize=1)
def _load_shared(shared_files: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays that the stage wrote for its workers, mapped once in each.

    Workers of one machine share the memory of a mapped file.
    """
    with files.localize(shared_files) as paths:
        return {
            path.stem: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            for path in paths
        }
