"""The near pairs of one or two sets of samples: sorts their vectors to files, and compares tiles.

Memory is about 60 bytes per sample in this process, and in each worker some tiles with the cosines
of their rows with every centroid. On disk the vectors lie once more, in half precision, with 260
bytes of sketch each.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.distances import l2_normalize
from curate.execution import engine
from curate.execution.reporting import no_progress
from curate.execution.types import Resources
from curate.formats.vectors import iterate_vectors, sample_rows
from curate.progress import progress_bar
from curate.stages.dedup.cosines import exact_cosines, fit_basis, sketch_rows, unit_rows
from curate.stages.dedup.methods import check_num_pairs, reduce_pairs
from curate.stages.dedup.worker import (
    BATCH_ROWS,
    CompareTiles,
    LocatedRows,
    LocateRows,
    SortedRows,
    Tiles,
)
from curate.storage import files as storage
from curate.storage.atomic import atomic_write

_TILE_ROWS = 1 << 10  # of which a product of sketches, 4 MiB, fits the processor's cache
_TASK_COSINES = 1 << 25  # of a task's rows with the centroids: 128 MiB
_TASK_ROWS = 1 << 13
_BASIS_ROWS = 1 << 12
_BUFFERED_PAIRS = 1 << 22


class VectorFiles(NamedTuple):
    """Files of vectors with their numbers of rows; of the samples in the file `within` only."""

    rows: dict[str, int]
    within: str | None


class LocatedSamples(NamedTuple):
    """All samples with a vector that is not zero, side by side, [n] each.

    Sides are 0, or 1 for those of the other catalog; see `LocatedRows` for the rest.
    """

    sides: np.ndarray
    sample_ids: np.ndarray
    clusters: np.ndarray
    angles: np.ndarray
    checksums: np.ndarray


@dataclass(frozen=True)
class VectorSets:
    """One or two sets of samples, and where workers and this process write what they share.

    `folder` is reached by every worker, `local_folder` by this process: the same without an object
    store. `centroids` are float16 [k, dim], in any number and anywhere: they only save time.
    """

    sides: tuple[VectorFiles, ...]
    dim: int
    centroids: np.ndarray
    folder: str
    local_folder: Path
    resources: Resources

    def locate(self) -> LocatedSamples:
        """Where the samples lie among the centroids, in the order of sides and ids."""
        tables = storage.join(self.folder, "centroids.npz")
        _save_arrays(tables, {"centroids": self.centroids})
        sides = np.empty(0, np.int8)
        parts = [LocatedRows(*(np.empty(0, kind) for kind in (int, np.int32, float, np.uint64)))]
        total = sum(sum(side.rows.values()) for side in self.sides)
        with progress_bar("locate", total) as advance:
            for number, side in enumerate(self.sides):
                outcomes = engine.map_or_raise(
                    LocateRows(tables, side.within),
                    side.rows,
                    self.resources,
                    advance=advance,
                    describe_item=lambda file: f"cannot read {storage.filename(file)}",
                    in_order=True,
                )
                for _, located in outcomes:
                    is_used = located.checksums != 0
                    parts.append(LocatedRows(*(column[is_used] for column in located)))
                    sides = np.append(sides, np.full(is_used.sum(), number, np.int8))
        return LocatedSamples(sides, *map(np.concatenate, zip(*parts, strict=True)))

    def sort(self, samples: LocatedSamples, ranks: np.ndarray) -> "SortedSamples":
        """Write the rows of the samples, sorted, with the ranks int64 [n] by which pairs name them.

        Samples of rank −1 are left out. The ranks of the others are 0, 1, 2 …
        """
        order = np.lexsort((samples.angles, samples.clusters, samples.sides))
        order = order[ranks[order] >= 0]
        positions = np.full(len(ranks), -1)
        positions[order] = np.arange(len(order))
        basis = self._fit_basis()
        names = ("vectors", "sketches", "ranks")
        paths = [self.local_folder / name for name in names]
        with open(paths[0], "wb") as vectors, open(paths[1], "wb") as sketches:
            for targets, rows in self._rows_with_positions(samples, positions):
                _write_rows(vectors.fileno(), targets, rows)
                _write_rows(sketches.fileno(), targets, sketch_rows(unit_rows(rows), basis))
        ranks[order].astype(np.uint32).tofile(paths[2])
        locations = [storage.join(self.folder, name) for name in names]
        if storage.is_url(self.folder):  # an object store takes whole files only
            for path, location in zip(paths, locations, strict=True):
                storage.upload(path, location)
        tables = storage.join(self.folder, "tiles.npz")
        tiles = _cut_tiles(samples, order)
        _save_arrays(tables, {"centroids": self.centroids, **tiles._asdict()})
        position_of_rank = np.empty(len(order), np.int64)
        position_of_rank[ranks[order]] = np.arange(len(order))
        rows_on_disk = SortedRows(
            vectors=locations[0],
            sketches=locations[1],
            ranks=locations[2],
            tables=tables,
            dim=self.dim,
            sketch_dim=basis.shape[1] + 1,
        )
        return SortedSamples(rows_on_disk, paths[0], tiles, position_of_rank, len(self.centroids))

    def _fit_basis(self) -> np.ndarray:
        side = self.sides[0]
        count = min(_BASIS_ROWS, sum(side.rows.values()))
        rows = sample_rows(side.rows, count, 0, no_progress, l2_normalize, side.within)
        return fit_basis(rows)

    def _rows_with_positions(
        self, samples: LocatedSamples, positions: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where rows go, int64 [b], with these rows, float16 [b, dim]."""
        for number, side in enumerate(self.sides):
            is_of_side = samples.sides == number
            side_ids, side_positions = samples.sample_ids[is_of_side], positions[is_of_side]
            for file in side.rows:
                for batch in iterate_vectors(file, BATCH_ROWS, side.within, np.float16):
                    index = np.searchsorted(side_ids, batch.sample_ids)
                    is_known = index < len(side_ids)
                    is_known[is_known] = side_ids[index[is_known]] == batch.sample_ids[is_known]
                    targets = np.full(len(index), -1)
                    targets[is_known] = side_positions[index[is_known]]
                    is_used = targets >= 0
                    yield targets[is_used], batch.vectors[is_used]


@dataclass(frozen=True)
class SortedSamples:
    """Samples whose rows are sorted on disk, ready to be compared; they are known by their rank."""

    rows: SortedRows
    vectors_path: Path
    tiles: Tiles
    position_of_rank: np.ndarray
    num_centroids: int

    def find_pairs(
        self, eps: float, method: str, resources: Resources, *, across: bool = False
    ) -> np.ndarray:
        """The near pairs that the method needs: uint32 [p, 2], the earlier rank first.

        With `across`, those between the sides. CurateError where greedy finds too many.
        """
        task = CompareTiles(self.rows, eps, method, across)
        parts, num_pairs, limit = [np.empty((0, 2), np.uint32)], 0, _BUFFERED_PAIRS
        with progress_bar("compare", len(self.position_of_rank)) as advance:
            for _, pairs in engine.map_or_raise(
                task, self._group_tiles(), resources, advance=advance
            ):
                parts.append(pairs)
                num_pairs += len(pairs)
                if num_pairs > limit:
                    parts = [reduce_pairs(np.concatenate(parts), method)]
                    num_pairs = len(parts[0])
                    limit = max(_BUFFERED_PAIRS, 2 * num_pairs)
                if method == "greedy":
                    check_num_pairs(num_pairs, eps)
        return reduce_pairs(np.concatenate(parts), method)

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The cosines of samples by their ranks, int [p] twice -> float64 [p]."""
        cosines = np.empty(len(left))
        if not len(left):
            return cosines
        shape = (len(self.position_of_rank), self.rows.dim)
        vectors = np.memmap(self.vectors_path, np.float16, mode="r", shape=shape)
        for start in range(0, len(left), BATCH_ROWS):
            block = slice(start, start + BATCH_ROWS)
            cosines[block] = exact_cosines(
                vectors[self.position_of_rank[left[block]]],
                vectors[self.position_of_rank[right[block]]],
            )
        return cosines

    def _group_tiles(self) -> Iterator[tuple[int, int]]:
        """Neighbouring tiles for a task, so that each later tile is read once for several."""
        max_rows = min(_TASK_ROWS, _TASK_COSINES // self.num_centroids)
        first, num_rows = 0, 0
        sizes = self.tiles.stops - self.tiles.starts
        for index, size in enumerate(sizes.tolist()):
            if num_rows and num_rows + size > max_rows:
                yield first, index
                first, num_rows = index, 0
            num_rows += size
        if num_rows:
            yield first, len(sizes)


def _cut_tiles(samples: LocatedSamples, order: np.ndarray) -> Tiles:
    """Runs of at most _TILE_ROWS rows of one side and one cluster, in the order of the files."""
    sides, clusters, angles = (
        column[order] for column in (samples.sides, samples.clusters, samples.angles)
    )
    changes = np.flatnonzero((np.diff(sides) != 0) | (np.diff(clusters) != 0)) + 1
    bounds = np.concatenate([[0], changes, [len(order)]])
    starts = np.concatenate(
        [np.arange(first, last, _TILE_ROWS) for first, last in itertools.pairwise(bounds)]
    ).astype(np.int64)
    stops = np.append(starts[1:], len(order))[: len(starts)]
    return Tiles(starts, stops, clusters[starts], sides[starts], angles[starts], angles[stops - 1])


def _write_rows(file: int, positions: np.ndarray, rows: np.ndarray) -> None:
    """Write rows [b, w] where they belong in an open file; neighbours in one call."""
    if not len(positions):
        return
    order = np.argsort(positions)
    positions, rows = positions[order], np.ascontiguousarray(rows[order])
    row_bytes = rows.shape[1] * rows.itemsize
    bounds = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
    data = rows.data.cast("B")
    for first, last in itertools.pairwise(bounds):
        written, offset = first * row_bytes, int(positions[first] - first) * row_bytes
        while written < last * row_bytes:
            written += os.pwrite(file, data[written : last * row_bytes], written + offset)


def _save_arrays(location: str, arrays: dict[str, np.ndarray]) -> None:
    with atomic_write(location) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
