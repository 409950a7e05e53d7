"""Which bytes are read at once: samples that follow each other in a shard, and small gaps."""

from typing import NamedTuple

import numpy as np

MAX_GAP = 1 << 20  # bytes: over a longer gap another request is always better
MAX_RANGE = 1 << 20  # bytes: so that shuffled ranges are well mixed, and many fit into memory


class ByteRanges(NamedTuple):
    """Requests, in the order of the tars: the first row of each, one past its last: int64 [m]."""

    starts: np.ndarray
    stops: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return np.asarray(self.stops - self.starts)


def join_neighbours(
    shards: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, max_waste: float
) -> ByteRanges:
    """Rows [n], sorted by shard and offset, in ranges of neighbours.

    Gaps are joined, the smallest first, as long as the bytes in them are at most `max_waste` of the
    samples' own: no other choice of as many bytes makes fewer requests. A range that grows beyond
    MAX_RANGE is cut between two samples.
    """
    if not len(offsets):
        return ByteRanges(np.empty(0, np.int64), np.empty(0, np.int64))
    stops = offsets + lengths
    gaps = offsets[1:] - stops[:-1]
    candidates = np.flatnonzero((shards[1:] == shards[:-1]) & (gaps >= 0) & (gaps <= MAX_GAP))
    smallest_first = candidates[np.argsort(gaps[candidates], kind="stable")]
    waste = np.cumsum(gaps[smallest_first])
    num_joined = np.searchsorted(waste, max_waste * float(lengths.sum()), side="right")
    is_cut = np.ones(len(offsets), bool)  # before each row
    is_cut[smallest_first[:num_joined] + 1] = False
    # Long runs in pieces: a new one wherever another MAX_RANGE from the run's start on is full.
    run_starts = np.flatnonzero(is_cut)
    run_numbers = np.cumsum(is_cut) - 1
    pieces = (offsets - offsets[run_starts][run_numbers]) // MAX_RANGE
    is_cut[1:] |= pieces[1:] != pieces[:-1]
    starts = np.flatnonzero(is_cut).astype(np.int64)
    return ByteRanges(starts, np.append(starts[1:], len(offsets)))
