"""The groups of duplicates: which sample stays for each, why, and how similar they are."""

from typing import NamedTuple

import numpy as np

KINDS = ("bytes", "pixels", "near")
_BYTES, _PIXELS, _NEAR = range(3)


class ExactGroups(NamedTuple):
    """Samples whose pixels another sample has too: ids int64 [e], group numbers int64 [e], and the
    checksums of their bytes uint64 [e]."""

    sample_ids: np.ndarray
    groups: np.ndarray
    image_checksums: np.ndarray


class Outcome(NamedTuple):
    """For each candidate, sorted by id: the sample that stays for it, int64 [n], itself where it
    stays; the index in KINDS of why it goes, −1 where it stays, int8 [n]; and the cosine of the
    two, float64 [n]."""

    survivor_ids: np.ndarray
    kinds: np.ndarray
    similarities: np.ndarray


def keep_one_of_each(sample_ids: np.ndarray, values: np.ndarray, exact: ExactGroups) -> Outcome:
    """Of exact duplicates the one of the highest value stays, of equal ones the first.

    Sorted candidates int64 [n] with values float64 [n], NaN for none.
    """
    survivors = sample_ids.copy()
    kinds, similarities = np.full(len(sample_ids), -1, np.int8), np.ones(len(sample_ids))
    if not len(exact.sample_ids):
        return Outcome(survivors, kinds, similarities)
    index = np.searchsorted(sample_ids, exact.sample_ids)
    order = np.lexsort((exact.sample_ids, -np.nan_to_num(values[index], nan=-np.inf), exact.groups))
    index, groups = index[order], exact.groups[order]
    checksums = exact.image_checksums[order]
    is_first = np.append(True, groups[1:] != groups[:-1])
    first = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    survivors[index] = sample_ids[index[first]]
    reasons = np.where(checksums == checksums[first], _BYTES, _PIXELS)
    kinds[index] = np.where(is_first, -1, reasons)
    return Outcome(survivors, kinds, similarities)


def add_near(
    sample_ids: np.ndarray, exact: Outcome, near_survivors: np.ndarray, cosines: np.ndarray
) -> Outcome:
    """With near duplicates among those that stayed: for each candidate who stays now, int64 [n],
    and the cosine with it, float64 [n].

    What went for a sample that now goes itself goes for the one that this one goes for.
    """
    index = np.searchsorted(sample_ids, exact.survivor_ids)
    survivors = near_survivors[index]
    is_near = survivors != exact.survivor_ids
    kinds = np.where(is_near, _NEAR, exact.kinds).astype(np.int8)
    similarities = np.where(is_near, cosines[index], exact.similarities)
    return Outcome(survivors, kinds, similarities)


def number_groups(
    sample_ids: np.ndarray, survivor_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the candidates, sorted ids int64 [n], are in groups of two and more: indices int64
    [r]; and the numbers of their groups, int64 [r], from 1, the largest first."""
    is_grouped = survivor_ids != sample_ids
    is_grouped[np.searchsorted(sample_ids, np.unique(survivor_ids[is_grouped]))] = True
    index = np.flatnonzero(is_grouped)
    survivors, inverse, sizes = np.unique(
        survivor_ids[index], return_inverse=True, return_counts=True
    )
    order = np.lexsort((survivors, -sizes))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(1, len(order) + 1)
    return index, numbers[inverse]
