"""In which order a reader gets its samples: a function of seed, epoch, rank and worker alone."""

from typing import NamedTuple

import numpy as np

from curate.random_hash import random_bits
from curate.streaming.byte_ranges import ByteRanges


class Share(NamedTuple):
    """One of `world_size` ranks, and one of the `num_workers` loader workers in it."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1


class EpochOrder(NamedTuple):
    """The samples of one worker in one epoch.

    `rows` int64 [n] are in the order in which they are read; `output` int64 [n] are positions in
    `rows`, in the order in which they are given out. `pieces` int64 [m + 1] are where the requests
    start and stop in `rows`.
    """

    rows: np.ndarray
    output: np.ndarray
    pieces: np.ndarray


def samples_per_rank(num_samples: int, world_size: int, *, drop_last: bool) -> int:
    """The same on every rank: with `drop_last` the rest of the division is left out, else each
    rank has one more, and the first samples of the epoch come again."""
    return num_samples // world_size if drop_last else -(-num_samples // world_size)


def order_epoch(
    ranges: ByteRanges,
    share: Share,
    *,
    seed: int,
    epoch: int,
    shuffle: int,
    drop_last: bool,
    repeats: np.ndarray | None = None,
) -> EpochOrder:
    """Shuffle the ranges, give each rank and worker its part, and shuffle that by a buffer.

    A part is a stretch of the shuffled ranges; a range on its border is cut. With `shuffle` 0 the
    order is that of the tars. `repeats` int64 [n] are how often each sample comes: a reader gets
    all of them, but those of a sample on the border of its part.
    """
    seeds = random_bits(np.array([2 * epoch, 2 * epoch + 1]), seed).tolist()
    permutation = np.arange(len(ranges.starts))
    if shuffle:
        permutation = np.argsort(random_bits(permutation, seeds[0]))
    counts = ranges.counts if repeats is None else np.add.reduceat(repeats, ranges.starts)
    bounds = np.concatenate([[0], np.cumsum(counts[permutation])])
    num_samples = int(bounds[-1])
    first, stop = _find_part(share, num_samples, drop_last=drop_last)
    stretches = []
    while first < stop:  # positions from num_samples on are the first ones again
        start = first % num_samples
        length = min(stop - first, num_samples - start)
        low = int(np.searchsorted(bounds, start, side="right")) - 1
        high = int(np.searchsorted(bounds, start + length, side="left"))
        stretch = _expand(ranges, permutation[low:high], repeats)
        stretches.append(stretch.cut(start - int(bounds[low]), length))
        first += length
    if not stretches:
        empty = np.empty(0, np.int64)
        return EpochOrder(empty, empty, np.zeros(1, np.int64))
    rows, pieces = _lay_out(stretches)
    if repeats is not None:
        # So that a sample is never twice in the buffer: it may be put off by its size, and what is
        # between by as much.
        shuffle = min(shuffle, _least_distance(rows) // 3)
    return EpochOrder(rows, _shuffle_by_buffer(rows, shuffle, seeds[1]), pieces)


class _Stretch(NamedTuple):
    """Rows [n], range by range, with how often each comes, and which range it is of."""

    rows: np.ndarray
    counts: np.ndarray
    range_numbers: np.ndarray

    def cut(self, start: int, length: int) -> "_Stretch":
        """So many samples from a position on, where each row has as many as it comes."""
        stops = np.cumsum(self.counts)
        low = int(np.searchsorted(stops, start, side="right"))
        high = int(np.searchsorted(stops, start + length, side="left")) + 1
        counts = self.counts[low:high].copy()
        counts[0] = stops[low] - start
        counts[-1] -= stops[high - 1] - (start + length)
        return _Stretch(self.rows[low:high], counts, self.range_numbers[low:high])


def _expand(ranges: ByteRanges, numbers: np.ndarray, repeats: np.ndarray | None) -> _Stretch:
    """All rows of some ranges."""
    starts, sizes = ranges.starts[numbers], ranges.counts[numbers]
    firsts = np.cumsum(sizes) - sizes
    rows = np.arange(int(sizes.sum())) + np.repeat(starts - firsts, sizes)
    counts = np.ones(len(rows), np.int64) if repeats is None else repeats[rows]
    return _Stretch(rows, counts, np.repeat(np.arange(len(sizes)), sizes))


def _find_part(share: Share, num_samples: int, *, drop_last: bool) -> tuple[int, int]:
    """Where the part of a rank's worker starts and stops in the epoch."""
    per_rank = samples_per_rank(num_samples, share.world_size, drop_last=drop_last)
    start = share.rank * per_rank
    first = start + per_rank * share.worker // share.num_workers
    return first, start + per_rank * (share.worker + 1) // share.num_workers


def _lay_out(stretches: list[_Stretch]) -> tuple[np.ndarray, np.ndarray]:
    """The rows in the order in which they are read, and where pieces start and stop in them.

    As many rounds over all ranges, always in the same order, as the most frequent sample comes.
    A sample comes in rounds that are as far apart as can be; the first one is another for each
    range, so that rounds are about as long. A piece are the rows of a range in one round.
    """
    rows = np.concatenate([stretch.rows for stretch in stretches])
    counts = np.concatenate([stretch.counts for stretch in stretches])
    # The ranges of a padded epoch's end, which come again, are others.
    sizes = [0, *(int(stretch.range_numbers[-1]) + 1 for stretch in stretches)]
    numbers = np.concatenate(
        [
            stretch.range_numbers + first
            for stretch, first in zip(stretches, np.cumsum(sizes), strict=False)
        ]
    )
    num_rounds, num_ranges = int(counts.max()), sum(sizes)
    read_rows, read_numbers = [], []
    for number in range(num_rounds):
        # Of R rounds, c of a sample that comes c times: those where c · r mod R is below c.
        is_read = (numbers + number) % num_rounds * counts % num_rounds < counts
        read_rows.append(rows[is_read])
        read_numbers.append(numbers[is_read] + number * num_ranges)
    all_rows, all_numbers = np.concatenate(read_rows), np.concatenate(read_numbers)
    borders = np.flatnonzero(np.diff(all_numbers)) + 1
    return all_rows, np.concatenate([[0], borders, [len(all_rows)]])


def _least_distance(rows: np.ndarray) -> int:
    """How near to each other two are that are the same row; far where none repeats."""
    order = np.argsort(rows, kind="stable")
    is_same = np.diff(rows[order]) == 0
    return int(np.diff(order)[is_same].min(initial=3 * len(rows)))


def _shuffle_by_buffer(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions in an order in which each is at most `size` places later than its own.

    Each position is put off by a random number below `size`, and they come as they are due. A
    buffer of that size does the same; but this order is known without reading, so that a
    reader that was interrupted finds its place at once.
    """
    positions = np.arange(len(rows))
    if size <= 1:
        return positions
    delays = (random_bits(rows, seed) >> np.uint64(11)) * (size / 2.0**53)
    return np.argsort(positions + delays, kind="stable")
