"""Quotas: how many samples each group keeps at least, and which samples fill the rest.

Sorscher et al. 2022 (section 5) keep at least 50% of the images of each class of ImageNet that
pruning all classes equally would keep.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from curate.random_hash import random_bits

BASES = ("proportional", "uniform")
_BLOCK_ROWS = 1 << 18  # looked at at a time
_DIGIT_BITS = 16
_PARTS = 16  # of all rows, that are sorted by group at a time


def group_quotas(
    sizes: np.ndarray,
    keep: float,
    balance: float,
    base: str = "proportional",
    tiebreak: np.ndarray | None = None,
) -> np.ndarray:
    """The least number of samples that each group keeps: int [groups] -> int [groups].

    proportional: ceil(balance · keep · size), so that no small group vanishes; balance 1 prunes
    every group equally. uniform: balance · total / (non-empty groups) for every group, where the
    total is round(keep · n). Where the ceilings add up to more than that, those that were rounded
    up the most are lowered by one; of equal ones those first in the order of `tiebreak` [groups]
    (`group_tiebreak`), which must not be the order of the classes.
    """
    total = round(keep * int(sizes.sum()))
    if base == "proportional":
        shares = balance * keep * sizes.astype(np.float64)
    else:
        shares = np.full(len(sizes), balance * total / max(int((sizes > 0).sum()), 1))
    # 0.1 · 30 is 3.0000000000000004 in binary, and its ceiling must be 3.
    quotas = np.minimum(np.ceil(shares - 1e-9), sizes).astype(np.int64)
    excess = int(quotas.sum()) - total
    if excess > 0:
        # Only what was rounded up can be lowered, each by one: the shares together never exceed
        # the total by 1.
        remainders = np.where(quotas > shares + 1e-9, shares - np.floor(shares), np.inf)
        if tiebreak is None:
            tiebreak = np.arange(len(sizes))
        # 0.2 · 1 and 0.2 · 6 have the same remainder, but for the last binary digits.
        order = np.lexsort((tiebreak, np.round(remainders, 9)))
        quotas[order[:excess]] -= 1
    return np.asarray(quotas)


def group_tiebreak(groups: np.ndarray, sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """A seeded order of the groups by their members alone: int [n], ids int64 [n] -> uint64 [g].

    Each group has the random bits of its smallest id, so that neither the names of the classes nor
    their order matter. Groups without a member come in any order.
    """
    first_ids = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    for start in range(0, len(groups), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        np.minimum.at(first_ids, groups[block], sample_ids[block])
    return random_bits(first_ids, seed)


def count_groups(groups: np.ndarray, num_groups: int = 0) -> np.ndarray:
    """The size of each group, of `num_groups` at least: int [n] -> int64 [groups].

    In blocks, because `np.bincount` copies what it counts to 64 bits.
    """
    num_groups = max(num_groups, int(groups.max(initial=-1)) + 1)
    sizes = np.zeros(num_groups, np.int64)
    for start in range(0, len(groups), _BLOCK_ROWS):
        sizes += np.bincount(groups[start : start + _BLOCK_ROWS], minlength=num_groups)
    return sizes


def select_with_quotas(
    groups: np.ndarray,
    priorities: np.ndarray,
    sample_ids: np.ndarray,
    quotas: np.ndarray,
    total: int,
    seed: int,
) -> np.ndarray:
    """The `total` samples of highest priority, each group at least its quota: [n] -> bool [n].

    `groups` are indices into `quotas`; priorities are float64, NaN comes last. Equal priorities are
    ordered by a shuffle of the ids under `seed`. Thresholds are found by counting, in linear time
    and, beside the arguments, in 3 bytes per sample.
    """
    is_kept = np.zeros(len(groups), bool)
    pool = _Pool(priorities, sample_ids, seed, is_kept)
    for rows, quota in _iterate_groups(groups, quotas):
        pool.keep_top(rows, quota)
    # The rest of the budget goes to the highest priorities in any group.
    pool.keep_top(lambda: _iterate_false(is_kept), total - int(quotas.sum()))
    return is_kept


def top_k(
    priorities: np.ndarray,
    sample_ids: np.ndarray,
    k: int,
    seed: int,
    exclude: np.ndarray | None = None,
) -> np.ndarray:
    """The k of highest priority, of all or of those not excluded: [n] -> bool [n].

    See `select_with_quotas` for ties and NaN.
    """
    is_kept = np.zeros(len(priorities), bool)
    is_excluded = np.zeros_like(is_kept) if exclude is None else exclude
    _Pool(priorities, sample_ids, seed, is_kept).keep_top(lambda: _iterate_false(is_excluded), k)
    return is_kept


# Gives row indices in blocks, int64 [b], from the first on each time that it is called.
_Blocks = Callable[[], Iterable[np.ndarray]]


class _Pool(NamedTuple):
    """Samples with their priorities, [n] each, and which of them are kept so far."""

    priorities: np.ndarray
    sample_ids: np.ndarray
    seed: int
    is_kept: np.ndarray

    def keep_top(self, blocks: _Blocks, count: int) -> None:
        """Keep the `count` rows of highest priority, or all where there are no more."""
        if count < 1:
            return
        num_rows = sum(map(len, blocks()))
        if count >= num_rows:
            for rows in blocks():
                self.is_kept[rows] = True
            return
        threshold, num_below = _find_kth(lambda: map(self._sort_keys, blocks()), num_rows, count)
        num_tied = 0
        for rows in blocks():
            keys = self._sort_keys(rows)
            self.is_kept[rows[keys < threshold]] = True
            num_tied += int((keys == threshold).sum())

        def iterate_tied() -> Iterator[np.ndarray]:
            return (rows[self._sort_keys(rows) == threshold] for rows in blocks())

        last, _ = _find_kth(
            lambda: map(self._shuffle_keys, iterate_tied()), num_tied, count - num_below
        )
        for rows in iterate_tied():
            self.is_kept[rows[self._shuffle_keys(rows) <= last]] = True

    def _sort_keys(self, rows: np.ndarray) -> np.ndarray:
        """Numbers that sort as the priorities do, the highest first and NaN last: uint64 [b].

        The bits of positive floats sort as whole numbers do, those of negative ones the other way.
        """
        values = self.priorities[rows] + 0.0  # so that −0 is 0
        bits = values.view(np.uint64)
        keys = np.where(bits >> np.uint64(63), bits, bits ^ np.uint64((1 << 63) - 1))
        keys[np.isnan(values)] = np.uint64((1 << 64) - 1)
        return np.asarray(keys)

    def _shuffle_keys(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(random_bits(self.sample_ids[rows], self.seed))


def _find_kth(
    key_blocks: Callable[[], Iterable[np.ndarray]], num_keys: int, k: int
) -> tuple[int, int]:
    """The k-th smallest of `num_keys` keys, uint64, k from 1; and how many are smaller.

    Digit by digit from the highest: each pass counts the next digit of the keys that begin with
    those found so far, until so few of them are left that they can be sorted.
    """
    prefix, shift, num_smaller = 0, 64, 0
    while num_keys > _BLOCK_ROWS and shift:
        counts = np.zeros(1 << _DIGIT_BITS, np.int64)
        for keys in key_blocks():
            digits = _next_digits(keys, prefix, shift)
            counts += np.bincount(digits, minlength=len(counts))
        totals = np.cumsum(counts)
        digit = int(np.searchsorted(totals, k - num_smaller))
        num_smaller += int(totals[digit] - counts[digit])
        num_keys = int(counts[digit])
        prefix, shift = prefix << _DIGIT_BITS | digit, shift - _DIGIT_BITS
    if not shift:
        return prefix, num_smaller
    found = [keys[_has_prefix(keys, prefix, shift)] for keys in key_blocks()]
    remaining = np.concatenate(found)
    index = k - num_smaller - 1
    remaining.partition(index)
    kth = remaining[index]
    return int(kth), num_smaller + int((remaining < kth).sum())


def _has_prefix(keys: np.ndarray, prefix: int, shift: int) -> np.ndarray:
    """Which keys have these bits above the lowest `shift`; all where there is no prefix yet."""
    if shift == 64:
        return np.ones(len(keys), bool)
    return np.asarray(keys >> np.uint64(shift) == np.uint64(prefix))


def _next_digits(keys: np.ndarray, prefix: int, shift: int) -> np.ndarray:
    """The digit below bit `shift` of the keys with the prefix: uint64 [b] -> int64 [c]."""
    digits = keys[_has_prefix(keys, prefix, shift)] >> np.uint64(shift - _DIGIT_BITS)
    return np.asarray(digits & np.uint64((1 << _DIGIT_BITS) - 1), np.int64)


def _iterate_false(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The indices of what is false, bool [n], in blocks."""
    for start in range(0, len(mask), _BLOCK_ROWS):
        yield np.flatnonzero(~mask[start : start + _BLOCK_ROWS]) + start


def _iterate_groups(groups: np.ndarray, quotas: np.ndarray) -> Iterator[tuple[_Blocks, int]]:
    """The rows of each group that has a quota, with this.

    Large groups are looked for in all rows each time. Small ones are sorted, some of them at a
    time: the row numbers of all would take 8 bytes per sample.
    """
    sizes = count_groups(groups, len(quotas))
    limit = max(len(groups) // _PARTS, _BLOCK_ROWS)
    first = 0
    while first < len(quotas):
        last, num_rows = first + 1, int(sizes[first])
        while last < len(quotas) and num_rows + sizes[last] <= limit:
            num_rows += int(sizes[last])
            last += 1
        if not quotas[first:last].any():
            first = last
            continue
        if num_rows > limit:
            yield functools.partial(_iterate_rows, groups, first, last), int(quotas[first])
            first = last
            continue
        rows = np.concatenate([np.empty(0, np.int64), *_iterate_rows(groups, first, last)])
        rows = rows[np.argsort(groups[rows], kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(sizes[first:last])])
        for group in range(first, last):
            start, stop = bounds[group - first : group - first + 2]
            members = rows[start:stop]
            if quotas[group]:
                yield functools.partial(_as_blocks, members), int(quotas[group])
        first = last


def _iterate_rows(groups: np.ndarray, first: int, last: int) -> Iterator[np.ndarray]:
    """The indices of the rows of groups from `first` to before `last`, in blocks."""
    for start in range(0, len(groups), _BLOCK_ROWS):
        block = groups[start : start + _BLOCK_ROWS]
        yield np.flatnonzero((block >= first) & (block < last)) + start


def _as_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]
