"""The work of `curate dedup`: where vectors lie among the centroids, and which of them are near.

It knows no catalog.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.formats.images import pixels_checksum
from curate.formats.member_roles import MemberRoles
from curate.formats.sample_ids import first_sample_id
from curate.formats.samples import CorruptShardError, iterate_samples
from curate.formats.tar import TarReader
from curate.formats.vectors import iterate_vectors
from curate.stages.dedup.cosines import (
    centroid_cosines,
    cosine_limits,
    exact_cosines,
    near_pairs,
    product_margin,
    unit_rows,
)
from curate.stages.dedup.methods import check_num_pairs, reduce_pairs
from curate.storage import files
from curate.storage.checksums import bytes_checksum

BATCH_ROWS = 1 << 12  # rows of a vector file in memory
# A product of this share of a tile's pairs costs as much as comparing the pairs one by one.
_DENSE_SHARE = 1 / 32
_BLOCK_ROWS = 1 << 8  # of a tile that is compared with itself
_BUFFERED_PAIRS = 1 << 22  # before they are reduced


class LocatedRows(NamedTuple):
    """Rows of one vector file: ids int64 [n], the nearest centroid int32 [n], the angle to it in
    radians float64 [n], and a checksum of each vector uint64 [n], 0 for one of zeros."""

    sample_ids: np.ndarray
    clusters: np.ndarray
    angles: np.ndarray
    checksums: np.ndarray


@dataclass(frozen=True)
class LocateRows:
    """The task: where the vectors of a file lie. `centroids_file` is a .npy, float16 [k, d].

    Of the samples in the file `within` only (`write_sample_ids`), where there is one.
    """

    centroids_file: str
    within: str | None = None

    def __call__(self, file: str) -> LocatedRows:
        centroids = _load_arrays(self.centroids_file)["centroids"]
        units = unit_rows(centroids)
        parts = []
        for batch in iterate_vectors(file, BATCH_ROWS, self.within, np.float16):
            rows = batch.vectors
            clusters = centroid_cosines(rows, units).argmax(axis=1).astype(np.int32)
            cosines = exact_cosines(rows, centroids[clusters])
            checksums = np.array([xxhash.xxh3_64_intdigest(row) for row in rows], np.uint64)
            checksums[~rows.any(axis=1)] = 0
            angles = np.arccos(np.clip(cosines, -1, 1))
            parts.append(LocatedRows(batch.sample_ids, clusters, angles, checksums))
            report_progress(len(rows))
        return LocatedRows(*map(np.concatenate, zip(*parts, strict=True)))


class Tiles(NamedTuple):
    """Rows of one cluster that follow each other in the sorted files, sorted by their angle.

    First and last row (excluded), cluster, side (0, or 1 for samples of the other catalog), and the
    angles between the rows and the cluster's centroid, in radians: [t] each.
    """

    starts: np.ndarray
    stops: np.ndarray
    clusters: np.ndarray
    sides: np.ndarray
    smallest_angles: np.ndarray
    largest_angles: np.ndarray


@dataclass(frozen=True)
class SortedRows:
    """Files with the rows of all vectors, sorted by side, cluster and angle, for random access.

    `vectors` has float16 [n, dim], `sketches` float32 [n, sketch_dim], `ranks` uint32 [n], all
    without headers; `tables` is an .npz with the centroids and the columns of `Tiles`.
    """

    vectors: str
    sketches: str
    ranks: str
    tables: str
    dim: int
    sketch_dim: int

    def read_vectors(self, start: int, stop: int) -> np.ndarray:
        return self._read(self.vectors, start, stop, np.float16, self.dim)

    def read_sketches(self, start: int, stop: int) -> np.ndarray:
        return self._read(self.sketches, start, stop, np.float32, self.sketch_dim)

    def read_ranks(self, start: int, stop: int) -> np.ndarray:
        return self._read(self.ranks, start, stop, np.uint32, 1)[:, 0]

    def load_tiles(self) -> tuple[np.ndarray, Tiles]:
        """The centroids, float32 [k, dim] of length 1, and the tiles."""
        tables = _load_arrays(self.tables)
        return unit_rows(tables["centroids"]), Tiles(*(tables[name] for name in Tiles._fields))

    def _read(self, location: str, start: int, stop: int, dtype: type, width: int) -> np.ndarray:
        row_bytes = width * np.dtype(dtype).itemsize
        data = files.read_range(location, start * row_bytes, (stop - start) * row_bytes)
        if len(data) != (stop - start) * row_bytes:
            raise CurateError(f"'{location}' was cut short: run the same command again")
        return np.frombuffer(data, dtype).reshape(-1, width)


@dataclass(frozen=True)
class CompareTiles:
    """The task: the near pairs of some tiles with themselves and with all later tiles.

    Returned are ranks, uint32 [p, 2], the earlier first; as few of the pairs as the method needs.
    With `across`, pairs are of samples of different sides.
    """

    rows: SortedRows
    eps: float
    method: str
    across: bool = False

    def __call__(self, tile_range: tuple[int, int]) -> np.ndarray:
        centroids, tiles = self.rows.load_tiles()
        first, last = tile_range
        own = [_OwnTile.load(self.rows, tiles, index, centroids) for index in range(first, last)]
        lowest, highest = cosine_limits(
            tiles.smallest_angles, tiles.largest_angles, self.eps, self.rows.dim
        )
        pairs = _PairBuffer(self.method, self.eps)
        for other in range(first, len(tiles.starts)):
            cluster = tiles.clusters[other]
            later: _LaterTile | None = None
            for tile in own:
                if other < tile.index or (self.across and tile.side == tiles.sides[other]):
                    continue
                if (
                    tile.largest_cosines[cluster] < lowest[other]
                    or tile.smallest_cosines[cluster] > highest[other]
                ):
                    continue
                if tile.index == other:
                    pairs.add(_compare_with_itself(tile, self.eps))
                    continue
                later = later or _LaterTile(self.rows, tiles.starts[other], tiles.stops[other])
                cosines = tile.cosines[:, cluster]
                reachable = np.flatnonzero((cosines >= lowest[other]) & (cosines <= highest[other]))
                if len(reachable):
                    pairs.add(_compare(tile, reachable, later, self.eps))
        report_progress(sum(len(tile.ranks) for tile in own))
        return pairs.finish()


@dataclass(frozen=True)
class _OwnTile:
    """A tile of the task, with the cosines of its rows with every centroid, float32 [rows, k]."""

    index: int
    side: int
    vectors: np.ndarray
    sketches: np.ndarray
    ranks: np.ndarray
    cosines: np.ndarray
    smallest_cosines: np.ndarray
    largest_cosines: np.ndarray

    @classmethod
    def load(cls, rows: SortedRows, tiles: Tiles, index: int, centroids: np.ndarray) -> "_OwnTile":
        start, stop = tiles.starts[index], tiles.stops[index]
        vectors = rows.read_vectors(start, stop)
        cosines = centroid_cosines(vectors, centroids)
        return cls(
            index,
            tiles.sides[index],
            vectors,
            rows.read_sketches(start, stop),
            rows.read_ranks(start, stop),
            cosines,
            cosines.min(axis=0),
            cosines.max(axis=0),
        )


@dataclass(frozen=True)
class _LaterTile:
    """A tile that the task's own are compared with; its vectors are read where they are needed."""

    rows: SortedRows
    start: int
    stop: int

    @functools.cached_property
    def sketches(self) -> np.ndarray:
        return self.rows.read_sketches(self.start, self.stop)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        return self.rows.read_vectors(self.start, self.stop)

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        return self.rows.read_ranks(self.start, self.stop)


def _compare(tile: _OwnTile, rows: np.ndarray, later: _LaterTile, eps: float) -> np.ndarray:
    """The near pairs of some rows of a tile with those of a later one, as ranks [p, 2]."""
    candidates = _find_candidates(tile, rows, later, 0, eps)
    return _near_ranks(tile, later, candidates, eps)


def _compare_with_itself(tile: _OwnTile, eps: float) -> np.ndarray:
    """The near pairs inside a tile, as ranks [p, 2].

    Blocks of rows are compared with the rows from their own first one on, which saves nearly half.
    """
    num_rows = len(tile.ranks)
    parts = [
        _find_candidates(
            tile, np.arange(first, min(first + _BLOCK_ROWS, num_rows)), tile, first, eps
        )
        for first in range(0, num_rows, _BLOCK_ROWS)
    ]
    candidates = np.concatenate(parts, axis=1)
    candidates = candidates[:, candidates[0] < candidates[1]]
    return _near_ranks(tile, tile, candidates, eps)


def _find_candidates(
    tile: _OwnTile, rows: np.ndarray, later: "_OwnTile | _LaterTile", first: int, eps: float
) -> np.ndarray:
    """What may be near: rows of the tile with those from `first` on of the later one, [2, p]."""
    threshold = 1 - eps
    # Neighbouring rows are a view, not a copy.
    is_run = len(rows) == rows[-1] - rows[0] + 1
    index = slice(rows[0], rows[-1] + 1) if is_run else rows
    sketches, later_sketches = tile.sketches[index], later.sketches[first:]
    bounds = sketches @ later_sketches.T
    cells = np.flatnonzero(bounds > threshold - product_margin(sketches.shape[1]))
    if len(cells) > _DENSE_SHARE * bounds.size:
        products = unit_rows(tile.vectors[index]) @ unit_rows(later.vectors[first:]).T
        cells = np.flatnonzero(products > threshold - product_margin(tile.vectors.shape[1]))
    own_rows, columns = np.divmod(cells, len(later_sketches))
    return np.stack([rows[own_rows], first + columns])


def _near_ranks(
    tile: _OwnTile, later: "_OwnTile | _LaterTile", candidates: np.ndarray, eps: float
) -> np.ndarray:
    if not candidates.shape[1]:
        return np.empty((0, 2), np.uint32)
    i, j = candidates[:, near_pairs(tile.vectors, later.vectors, candidates, eps)]
    return np.sort(np.stack([tile.ranks[i], later.ranks[j]], axis=1), axis=1)


class _PairBuffer:
    """Collects pairs, reducing them as the method allows."""

    def __init__(self, method: str, eps: float) -> None:
        self._method, self._eps = method, eps
        self._parts: list[np.ndarray] = []
        self._num_pairs = self._limit = 0

    def add(self, pairs: np.ndarray) -> None:
        self._parts.append(pairs)
        self._num_pairs += len(pairs)
        if self._num_pairs > max(_BUFFERED_PAIRS, 2 * self._limit):
            self._limit = len(self.finish())  # so many cannot be reduced further

    def finish(self) -> np.ndarray:
        pairs = np.concatenate([np.empty((0, 2), np.uint32), *self._parts])
        pairs = reduce_pairs(pairs, self._method)
        self._parts, self._num_pairs = [pairs], len(pairs)
        if self._method == "greedy":
            check_num_pairs(len(pairs), self._eps)
        return pairs


class SampleChecksums(NamedTuple):
    """Of the images of a shard: ids int64 [n], and what `samples` has of each, [n]."""

    sample_ids: np.ndarray
    image_bytes: np.ndarray
    image_checksums: np.ndarray
    pixels_checksums: np.ndarray


@dataclass(frozen=True)
class ChecksumImages:
    """The task: the checksums that a shard's samples lack, as an earlier version embedded it."""

    def __call__(self, shard: tuple[int, str, str, np.ndarray]) -> SampleChecksums:
        shard_id, url, checksum, sample_ids = shard
        wanted, rows = set(sample_ids.tolist()), []
        with files.open_binary(url, sequential=True) as stream:
            reader = TarReader(stream, checksum)
            try:
                for position, sample in enumerate(iterate_samples(reader)):
                    sample_id = first_sample_id(shard_id) + position
                    extension = MemberRoles().choose_image(sample.members).extension
                    if sample_id in wanted and extension is not None:
                        data = sample.members[extension]
                        rows.append(
                            (sample_id, len(data), bytes_checksum(data), pixels_checksum(data))
                        )
            except CorruptShardError:  # embed has recorded that; what is whole was read
                reader.drain()
            if reader.checksum != checksum:
                raise CurateError("it has changed since it was embedded: restore it")
        report_progress(len(rows))
        types = (np.int64, np.int64, np.uint64, np.uint64)
        columns = zip(*rows, strict=True) if rows else ([], [], [], [])
        return SampleChecksums(
            *(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True))
        )


@functools.lru_cache(maxsize=2)
def _load_arrays(location: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, read once in each worker."""
    with files.localize([location]) as (path,), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
