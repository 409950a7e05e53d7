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
    ranges: ByteRanges, share: Share, *, seed: int, epoch: int, shuffle: int, drop_last: bool
) -> EpochOrder:
    """Shuffle the ranges, give each rank and worker its part, and shuffle that by a buffer.

    A part is a stretch of the shuffled ranges; a range on its border is cut. With `shuffle` 0 the
    order is that of the tars.
    """
    seeds = random_bits(np.array([2 * epoch, 2 * epoch + 1]), seed).tolist()
    permutation = np.arange(len(ranges.starts))
    if shuffle:
        permutation = np.argsort(random_bits(permutation, seeds[0]))
    counts = ranges.counts[permutation]
    bounds = np.concatenate([[0], np.cumsum(counts)])
    num_samples = int(bounds[-1])
    per_rank = samples_per_rank(num_samples, share.world_size, drop_last=drop_last)
    first = share.rank * per_rank + per_rank * share.worker // share.num_workers
    stop = share.rank * per_rank + per_rank * (share.worker + 1) // share.num_workers
    starts, stops = [], []
    while first < stop:  # positions from num_samples on are the first ones again
        start = first % num_samples
        length = min(stop - first, num_samples - start)
        low = np.searchsorted(bounds, start, side="right") - 1
        high = np.searchsorted(bounds, start + length, side="left")
        part_starts = ranges.starts[permutation[low:high]]
        part_stops = ranges.stops[permutation[low:high]]
        part_starts[0] += start - bounds[low]
        part_stops[-1] -= bounds[high] - (start + length)
        starts.append(part_starts)
        stops.append(part_stops)
        first += length
    if not starts:
        empty = np.empty(0, np.int64)
        return EpochOrder(empty, empty, np.zeros(1, np.int64))
    row_starts, row_stops = np.concatenate(starts), np.concatenate(stops)
    pieces = np.concatenate([[0], np.cumsum(row_stops - row_starts)])
    rows = np.arange(pieces[-1]) + np.repeat(row_starts - pieces[:-1], np.diff(pieces))
    return EpochOrder(rows, _shuffle_by_buffer(rows, shuffle, seeds[1]), pieces)


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
