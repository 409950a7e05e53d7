"""The work of `curate select` for one cluster: the nearest neighbours of its samples.

It knows no catalog.
"""

import functools
from dataclasses import dataclass

import numpy as np

from curate.distances import rowwise_distance
from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.storage import files
from curate.strategies import Neighbours

_BLOCK_VALUES = 1 << 24  # numbers of neighbours that are gathered at a time


@dataclass(frozen=True)
class FindNeighbours:
    """The task: of one cluster's rows the `count` nearest rows in the clusters next to it.

    `vectors` is a file of normalized rows, float32 [n, dim], sorted by cluster, without a header;
    `tables` an .npz with the bounds of the clusters, int64 [k + 1], and for each the clusters that
    are looked at, int64 [k, p], −1 for none. Neighbours are indices into the sorted rows.
    """

    vectors: str
    tables: str
    dim: int
    count: int
    distance: str

    def __call__(self, cluster: int) -> Neighbours:
        import faiss

        tables = _load_tables(self.tables)
        bounds, near = tables["bounds"], tables["near_clusters"][cluster]
        near = np.sort(near[near >= 0])
        start, stop = bounds[cluster], bounds[cluster + 1]
        candidates = np.concatenate(
            [self._read(bounds[cluster_id], bounds[cluster_id + 1]) for cluster_id in near]
        )
        positions = np.concatenate(
            [np.arange(bounds[cluster_id], bounds[cluster_id + 1]) for cluster_id in near]
        )
        first = int(np.searchsorted(positions, start))
        indices = np.empty((stop - start, self.count), np.int32)
        distances = np.empty((stop - start, self.count), np.float32)
        step = max(_BLOCK_VALUES // (self.count * self.dim), 1)
        for block_start in range(0, stop - start, step):
            block = slice(block_start, min(block_start + step, stop - start))
            rows = candidates[first + block.start : first + block.stop]
            _, nearest = faiss.knn(rows, candidates, self.count + 1)
            # Of several equal rows, a row itself need not be among the nearest.
            own_positions = first + np.arange(block.start, block.stop)[:, None]
            order = np.argsort(nearest == own_positions, axis=1, kind="stable")
            nearest = np.take_along_axis(nearest, order, axis=1)[:, : self.count]
            # faiss has them from ‖x‖² − 2x·y + ‖y‖², which loses the digits of short distances.
            repeated = np.repeat(rows, self.count, axis=0)
            targets = nearest.reshape(-1)
            exact = rowwise_distance(repeated, candidates, self.distance, targets)
            indices[block] = positions[nearest]
            distances[block] = exact.reshape(nearest.shape)
        report_progress(stop - start)
        return Neighbours(indices, distances)

    def _read(self, start: int, stop: int) -> np.ndarray:
        row_bytes = 4 * self.dim
        data = files.read_range(self.vectors, start * row_bytes, (stop - start) * row_bytes)
        if len(data) != (stop - start) * row_bytes:
            raise CurateError(f"'{self.vectors}' was cut short: run the same command again")
        return np.frombuffer(data, np.float32).reshape(-1, self.dim)


@functools.lru_cache(maxsize=2)
def _load_tables(location: str) -> dict[str, np.ndarray]:
    with files.localize([location]) as (path,), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
