"""How a subset is distributed over groups, and how well it covers what was dropped.

KL divergence (Kullback and Leibler 1951), in nats, of the groups of the subset from those of all:
Σ p log(p / q), 0 where every group keeps the same share. Effective number of groups (Hill 1973):
exp(−Σ p log p), that of as many groups of one size as are as diverse. Coverage: how far dropped
samples are from the nearest one that is kept (the k-center radius of Sener and Savarese 2018, as a
whole distribution). Evenness of contributions: see `Evenness`. It knows no catalog.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from curate.execution.types import ReportProgress
from curate.formats.sample_ids import are_members
from curate.formats.vectors import read_sample_ids
from curate.training.nearest import (
    MAX_EXAMINED,
    draw_samples,
    largest_cosines,
    near_duplicate_cosine,
    read_samples,
)

# Samples that are looked at for each subset; their mean distance has a standard error of 2% of the
# spread. All dropped ones of a small corpus are.
MAX_DROPPED, MAX_KEPT = 2_000, 1_000
MAX_SUBSETS = 4  # whose coverage is measured: the selection, and three at random
NUM_PASSES = 3  # over the rows of the files, in `measure_coverage`


def kl_divergence(num_kept: np.ndarray, num_all: np.ndarray) -> float:
    """Of the groups of a subset from those of all, in nats: counts [groups], [groups]."""
    is_kept = num_kept > 0
    p = num_kept[is_kept] / num_kept.sum()
    q = num_all[is_kept] / num_all.sum()
    return float(max((p * np.log(p / q)).sum(), 0.0))


def effective_number(counts: np.ndarray) -> float:
    """exp of the entropy of counts [groups]: from 1 to the number of groups."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


class Evenness(NamedTuple):
    """How even the contributions of samples are (Gu et al. 2024, arXiv:2402.17759).

    Where learning is optimal all contribute alike. `similarity` is mean / standard deviation;
    `effective_share` is (Σ c)² / (n Σ c²), the share of samples that as many equal ones would be, 1
    where all are equal, 0 where the sum is not above 0; `negative_share` is that of samples which
    hurt.
    """

    num_samples: int
    mean: float
    similarity: float
    effective_share: float
    negative_share: float


def measure_evenness(contributions: np.ndarray) -> Evenness | None:
    """Of contributions float64 [n]; NaN, of samples without a label, does not count."""
    present = contributions[np.isfinite(contributions)]
    if not len(present):
        return None
    mean, spread = float(present.mean()), float(present.std())
    square = float(np.square(present).mean())
    return Evenness(
        num_samples=len(present),
        mean=mean,
        similarity=mean / spread if spread else 0.0,
        effective_share=mean**2 / square if mean > 0 else 0.0,
        negative_share=float((present < 0).mean()),
    )


def contribution_curve(contributions: np.ndarray) -> np.ndarray:
    """What the least contributing share of samples adds up to, for 0, 1, … 100% of them.

    float64 [101], as a share of the sum of absolute contributions: a Lorenz curve, which falls
    below 0 as far as samples hurt, and ends at 1 where none does.
    """
    present = np.sort(contributions[np.isfinite(contributions)])
    total = max(float(np.abs(present).sum()), np.finfo(np.float64).tiny)
    sums = np.concatenate([[0.0], np.cumsum(present)]) / total
    return np.asarray(np.interp(np.linspace(0, len(present), 101), np.arange(len(sums)), sums))


class Coverage(NamedTuple):
    """For each subset, float64 [subsets]; cosine distances, 1 − x·y.

    `distance_mean` and `distance_99` are of dropped samples to the nearest kept one, NaN where
    nothing was dropped. `near_duplicate_share` is that of the kept samples which have another kept
    one at `near_duplicate_cosine` or more.
    """

    distance_mean: np.ndarray
    distance_99: np.ndarray
    near_duplicate_share: np.ndarray
    near_duplicate_cosine: float


def measure_coverage(
    files: Iterable[str],
    candidate_ids: np.ndarray,
    subsets: list[np.ndarray],
    near_share: float,
    seed: int,
    advance: ReportProgress,
) -> Coverage | None:
    """Of subsets of the candidates: sorted ids int64 [n], bool [n] each. None without any vector.

    Near is what is nearer than `near_share` of the distance that is usual between neighbours.
    Samples without a vector in the files are left out. Of each subset MAX_DROPPED dropped samples
    and MAX_KEPT kept ones are looked at, drawn by the seeded hash, and compared with every kept
    one. Memory: see `nearest_distances`, for these samples; and 25 bytes by candidate.
    """
    files = list(files)
    all_ids = np.concatenate([np.empty(0, np.int64), *map(read_sample_ids, files)])
    all_ids.sort()
    has_vector = are_members(candidate_ids, all_ids)
    del all_ids
    if not has_vector.any():
        return None
    if not has_vector.all():
        candidate_ids = candidate_ids[has_vector]
        subsets = [is_kept[has_vector] for is_kept in subsets]
    kept = [draw_samples(candidate_ids[is_kept], MAX_KEPT, seed) for is_kept in subsets]
    dropped = [draw_samples(candidate_ids[~is_kept], MAX_DROPPED, seed) for is_kept in subsets]
    examined = draw_samples(candidate_ids, MAX_EXAMINED, seed)
    threshold = near_duplicate_cosine(read_samples(files, examined, advance), near_share)

    def find_subsets(sample_ids: np.ndarray) -> np.ndarray:
        index = np.minimum(np.searchsorted(candidate_ids, sample_ids), len(candidate_ids) - 1)
        is_candidate = candidate_ids[index] == sample_ids
        return np.stack([is_kept[index] & is_candidate for is_kept in subsets])

    # Drawn by one hash, they are nearly the same samples for every subset.
    query_ids = np.unique(np.concatenate([*kept, *dropped]))
    queries = read_samples(files, query_ids, advance)
    cosines = largest_cosines(
        files, queries, find_subsets, len(subsets), advance, own_ids=query_ids
    )
    means, quantiles, shares = (np.full(len(subsets), np.nan) for _ in range(3))
    for index, (kept_ids, dropped_ids) in enumerate(zip(kept, dropped, strict=True)):
        if len(kept_ids) and len(dropped_ids):
            of_dropped = cosines[index, np.searchsorted(query_ids, dropped_ids)]
            distances = np.maximum(1 - of_dropped.astype(np.float64), 0)
            means[index], quantiles[index] = distances.mean(), np.quantile(distances, 0.99)
        if len(kept_ids):
            of_kept = cosines[index, np.searchsorted(query_ids, kept_ids)]
            shares[index] = (of_kept >= threshold).mean()
    return Coverage(means, quantiles, shares, threshold)
