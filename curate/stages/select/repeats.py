"""How often each kept sample comes in an epoch: the best ones several times, others perhaps never.

The expected number falls with the rank from `most` to 0, as if each of the k places of an epoch
were given to the best of `most` samples that are drawn at random among the k kept ones (tournament
selection, Goldberg and Deb 1991). So the total stays k, and no sample is expected more often than
`most` times; `most` 1 gives each sample one place.
"""

import numpy as np

from curate.random_hash import random_bits


def expected_repeats(count: int, most: float) -> np.ndarray:
    """By rank, the best first: float64 [count], at most `most` each, `count` together."""
    worse = np.linspace(1.0, 0.0, count + 1) ** most  # shares of the places for worse ranks
    return np.asarray(count * (worse[:-1] - worse[1:]))


def draw_repeats(
    priorities: np.ndarray, groups: np.ndarray, sample_ids: np.ndarray, most: float, seed: int
) -> np.ndarray:
    """How often each kept sample comes: int64 [k], `k` together, and so in each group.

    Priorities float64 [k], NaN for the last; groups are whole numbers, int [k], ids int64 [k]. The
    numbers are the expected ones rounded up or down, by one random number a group (systematic
    sampling). Ties are broken by the seed, as those of the selection are.
    """
    tiebreak = random_bits(sample_ids, seed)
    order = np.lexsort((tiebreak, -priorities, groups))  # NaN sorts last
    _, sizes = np.unique(groups[order], return_counts=True)
    shifts = (random_bits(np.arange(len(sizes)), seed) >> np.uint64(11)) / 2.0**53
    repeats = np.empty(len(order), np.int64)
    start = 0
    for size, shift in zip(sizes.tolist(), shifts.tolist(), strict=True):
        sums = np.concatenate([[0.0], np.cumsum(expected_repeats(size, most))])
        sums[-1] = size  # exactly, whatever the rounding
        repeats[order[start : start + size]] = np.diff(np.floor(sums + shift).astype(np.int64))
        start += size
    return repeats
