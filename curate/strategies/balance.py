"""Class balance: how many samples of each group are sure to stay (Sorscher et al. 2022, appendix: 50% for ImageNet)."""

import numpy as np

BASES = ("proportional", "uniform")


def floors(sizes: np.ndarray, keep: float, balance: float, base: str = "proportional") -> np.ndarray:
    """The floor of each group: int [groups] -> int [groups], their sum at most round(keep · n).

    proportional: ceil(balance · keep · size), so that no small group vanishes; balance 1 prunes every group
    equally. uniform: the same number for each, balance · total / groups. Where the ceilings together exceed
    the selection, those that were rounded up the most give way.
    """
    total = round(keep * int(sizes.sum()))
    if base == "proportional":
        wanted = balance * keep * sizes.astype(np.float64)
    else:
        wanted = np.full(len(sizes), balance * total / max(len(sizes), 1))
    # 0.1 · 30 is 3.0000000000000004 in binary, and its ceiling must be 3.
    ceilings = np.minimum(np.ceil(wanted - 1e-9), sizes).astype(np.int64)
    excess = int(ceilings.sum()) - total
    if excess > 0:
        remainders = np.where(ceilings > wanted + 1e-9, wanted - np.floor(wanted), np.inf)
        # Only what was rounded up can give way, each by one: the sum of `wanted` never exceeds the total by 1.
        ceilings[np.argsort(remainders, kind="stable")[:excess]] -= 1
    return np.asarray(ceilings)


def drawn(groups: np.ndarray, priorities: np.ndarray, floors: np.ndarray, total: int) -> np.ndarray:
    """The same rule as `catalog/stages/select.sql`: the highest priorities, each group sure of its floor: [n] -> bool [n].

    `groups` are places in `floors`, int [n]; priorities without ties.
    """
    order = np.lexsort((-priorities.astype(np.float64), groups))
    starts = np.searchsorted(groups[order], np.arange(len(floors)))
    sure = np.arange(len(order)) - starts[groups[order]] < floors[groups[order]]
    kept = np.zeros(len(groups), bool)
    kept[order[sure]] = True
    rest = np.flatnonzero(~kept)
    kept[rest[np.argsort(-priorities[rest].astype(np.float64), kind="stable")[: total - int(kept.sum())]]] = True
    return kept
