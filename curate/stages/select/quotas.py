"""Quotas: how many samples each group keeps at least, and which samples fill the rest.

Sorscher et al. 2022 (section 5) keep at least 50% of the images of each class of ImageNet that
pruning all classes equally would keep.
"""

import numpy as np

from curate.random_hash import random_bits

BASES = ("proportional", "uniform")
_SORT_BLOCK = 1 << 22  # samples


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
    for start in range(0, len(groups), _SORT_BLOCK):
        block = slice(start, start + _SORT_BLOCK)
        np.minimum.at(first_ids, groups[block], sample_ids[block])
    return random_bits(first_ids, seed)


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
    ordered by a shuffle of the ids under `seed`. Thresholds are found by partition, in linear time:
    only the groups are sorted, by radix.
    """
    is_kept = np.zeros(len(groups), bool)
    order, bounds = _sort_by_group(groups, len(quotas))
    for start, stop, quota in zip([0, *bounds[:-1]], bounds, quotas, strict=True):
        if quota:
            members = order[start:stop]
            is_top = top_k(priorities[members], sample_ids[members], int(quota), seed)
            is_kept[members[is_top]] = True
    del order
    # The rest of the budget goes to the highest priorities in any group.
    remaining = total - int(quotas.sum())
    return np.asarray(is_kept | top_k(priorities, sample_ids, remaining, seed, exclude=is_kept))


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
    is_free = np.ones(len(priorities), bool) if exclude is None else ~exclude
    is_scored = is_free & ~np.isnan(priorities)
    scores = priorities[is_scored]
    if k >= len(scores):
        unscored = _shuffle_and_take(is_free & ~is_scored, sample_ids, k - len(scores), seed)
        return np.asarray(is_scored | unscored)
    if not k:
        return np.zeros(len(priorities), bool)
    threshold_index = len(scores) - k
    scores.partition(threshold_index)
    threshold = scores[threshold_index]
    is_above = is_scored & (priorities > threshold)
    is_tied = is_scored & (priorities == threshold)
    return np.asarray(
        is_above | _shuffle_and_take(is_tied, sample_ids, k - int(is_above.sum()), seed)
    )


def _sort_by_group(groups: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Row indices ordered by group: uint [n]; and where each group ends: int [groups].

    A stable sort, block by block: one sort of all would need two more arrays of 8 bytes per sample.
    """
    code_type = np.min_scalar_type(max(num_groups - 1, 0))  # numpy sorts 16 bits by radix
    order = np.empty(len(groups), np.min_scalar_type(len(groups)))
    starts = range(0, len(groups), _SORT_BLOCK)
    sizes = np.zeros(num_groups, np.int64)
    for start in starts:
        sizes += np.bincount(groups[start : start + _SORT_BLOCK], minlength=num_groups)
    bounds = np.cumsum(sizes)
    next_free = bounds - sizes  # where the next row of each group is put
    for start in starts:
        block = groups[start : start + _SORT_BLOCK].astype(code_type)
        block_sizes = np.bincount(block, minlength=num_groups)
        offsets = next_free - np.cumsum(block_sizes) + block_sizes
        targets = np.repeat(offsets, block_sizes) + np.arange(len(block))
        order[targets] = np.argsort(block, kind="stable") + start
        next_free += block_sizes
    return order, bounds


def _shuffle_and_take(
    is_candidate: np.ndarray, sample_ids: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """The first `count` candidates in the order of a shuffle: bool [n] -> bool [n]."""
    row_indices = np.flatnonzero(is_candidate)
    is_taken = np.zeros(len(is_candidate), bool)
    if 0 < count < len(row_indices):
        bits = random_bits(sample_ids[row_indices], seed)
        row_indices = row_indices[np.argpartition(bits, count - 1)]
    is_taken[row_indices[: max(count, 0)]] = True
    return is_taken
