"""Class balance: how many samples of each group are sure to stay (Sorscher et al. 2022, appendix: 50% for ImageNet)."""

import numpy as np

from curate import shuffle

BASES = ("proportional", "uniform")
_BLOCK = 1 << 22  # samples


def floors(sizes: np.ndarray, keep: float, balance: float, base: str = "proportional") -> np.ndarray:
    """The floor of each group: int [groups] -> int [groups], their sum at most round(keep · n); empty groups count for nothing.

    proportional: ceil(balance · keep · size), so that no small group vanishes; balance 1 prunes every group
    equally. uniform: the same number for each, balance · total / groups. Where the ceilings together exceed
    the selection, those that were rounded up the most give way.
    """
    total = round(keep * int(sizes.sum()))
    if base == "proportional":
        wanted = balance * keep * sizes.astype(np.float64)
    else:
        wanted = np.full(len(sizes), balance * total / max(int((sizes > 0).sum()), 1))
    # 0.1 · 30 is 3.0000000000000004 in binary, and its ceiling must be 3.
    ceilings = np.minimum(np.ceil(wanted - 1e-9), sizes).astype(np.int64)
    excess = int(ceilings.sum()) - total
    if excess > 0:
        remainders = np.where(ceilings > wanted + 1e-9, wanted - np.floor(wanted), np.inf)
        # Only what was rounded up can give way, each by one: the sum of `wanted` never exceeds the total by 1.
        ceilings[np.argsort(remainders, kind="stable")[:excess]] -= 1
    return np.asarray(ceilings)


def drawn(
    groups: np.ndarray, priorities: np.ndarray, sample_ids: np.ndarray, floors: np.ndarray, total: int, seed: int
) -> np.ndarray:
    """The `total` samples of highest priority, each group sure of its floor: [n] -> bool [n].

    `groups` are places in `floors`; priorities float64, NaN comes last. Equal priorities are told apart by a shuffle of
    the ids under `seed`. Thresholds are found by partition, in linear time: nothing is sorted but the groups, by radix.
    """
    kept = np.zeros(len(groups), bool)
    order, ends = _by_group(groups, len(floors))
    for start, end, floor in zip([0, *ends[:-1]], ends, floors, strict=True):
        if floor:
            places = order[start:end]
            kept[places[highest(priorities[places], sample_ids[places], int(floor), seed)]] = True
    del order
    # What no floor secures competes for the rest of the budget, wherever it is.
    return np.asarray(kept | highest(priorities, sample_ids, total - int(floors.sum()), seed, besides=kept))


def _by_group(groups: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The places 0..n-1 group by group, each group's in order: uint [n]; and where each group ends: int [count].

    A stable sort, block by block: one sort of all would need two more arrays of 8 bytes a sample.
    """
    small = np.min_scalar_type(max(count - 1, 0))  # numpy sorts codes of 16 bits by radix
    order = np.empty(len(groups), np.min_scalar_type(len(groups)))
    blocks = range(0, len(groups), _BLOCK)
    sizes = sum((np.bincount(groups[start : start + _BLOCK], minlength=count) for start in blocks), np.zeros(count, np.int64))
    ends = np.cumsum(sizes)
    free = ends - sizes  # where the next of each group goes
    for start in blocks:
        block = groups[start : start + _BLOCK].astype(small)
        sizes = np.bincount(block, minlength=count)
        places = np.repeat(free - np.cumsum(sizes) + sizes, sizes) + np.arange(len(block))
        order[places] = np.argsort(block, kind="stable") + start
        free += sizes
    return order, ends


def highest(
    priorities: np.ndarray, sample_ids: np.ndarray, count: int, seed: int, besides: np.ndarray | None = None
) -> np.ndarray:
    """Which are the `count` of highest priority, of all or of those `besides` others: [n] -> bool [n]; see `drawn`."""
    free = np.ones(len(priorities), bool) if besides is None else ~besides
    scored = free & ~np.isnan(priorities)
    known = priorities[scored]
    if count >= len(known):
        return np.asarray(scored | _shuffled(free & ~scored, sample_ids, count - len(known), seed))
    if not count:
        return np.zeros(len(priorities), bool)
    place = len(known) - count
    known.partition(place)
    above = scored & (priorities > known[place])
    return np.asarray(above | _shuffled(scored & (priorities == known[place]), sample_ids, count - int(above.sum()), seed))


def _shuffled(equal: np.ndarray, sample_ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many of those that are equal, by the order of a shuffle."""
    places = np.flatnonzero(equal)
    chosen = np.zeros(len(equal), bool)
    bits = shuffle.random_bits(sample_ids[places], seed)
    chosen[places[np.argpartition(bits, count - 1)[:count]] if 0 < count < len(places) else places[:count]] = True
    return chosen
