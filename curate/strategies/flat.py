"""Evenly from every concept: hierarchical k-means, sampled down its tree.

Vo et al. 2024, "Automatic data curation for self-supervised learning: a clustering-based approach"
(arXiv 2405.15613), whose code is ssl-data-curation.
"""

from collections.abc import Callable

import numpy as np

from curate.random_hash import random_bits
from curate.strategies import Quotas, check_option, strategy, unit_interval

_SHRINKING = 10  # clusters of a level for each of the level above


@strategy
def flat(
    clusters: np.ndarray,
    centroids: np.ndarray,
    find_clusters: Callable[[np.ndarray, int], np.ndarray],
    sample_ids: np.ndarray,
    seed: int,
    num_kept: int,
    levels: int = 2,
) -> Quotas:
    """As evenly from the clusters of every level as their sizes allow: [n], [k, d] -> Quotas.

    The centroids of a level are clustered into a tenth as many for the next. From the top down each
    cluster divides its share by the cut c with Σ min(c, size) = share; inside the lowest the draw
    is random. With `levels` 1 there is no tree.
    """
    check_option("levels", levels, is_good=levels >= 1, expected="a number from 1")
    sizes = np.bincount(clusters, minlength=len(centroids))
    tree, rows = [np.arange(len(centroids))], centroids
    for _ in range(levels - 1):
        num_parents = len(rows) // _SHRINKING
        if num_parents < 2:
            break
        parents = find_clusters(rows, num_parents)
        counts = np.maximum(np.bincount(parents, minlength=num_parents), 1)
        sums = np.zeros((num_parents, rows.shape[1]))
        np.add.at(sums, parents, rows)
        tree.append(parents)
        rows = (sums / counts[:, None]).astype(np.float32)
    quotas = share_down(sizes, tree[1:], num_kept, seed)
    return Quotas(quotas, clusters, unit_interval(random_bits(sample_ids, seed)))


def share_down(
    sizes: np.ndarray, parents_by_level: list[np.ndarray], total: int, seed: int
) -> np.ndarray:
    """How many of each of the lowest clusters, int [k], from the top of the tree down.

    `parents_by_level` says of each cluster of a level which one of the next level it is in.
    """
    all_sizes = [sizes]
    for parents in parents_by_level:
        all_sizes.append(np.bincount(parents, all_sizes[-1]).astype(np.int64))
    shares = cut_sizes(all_sizes[-1], total, seed)
    for parents, level_sizes in zip(parents_by_level[::-1], all_sizes[-2::-1], strict=True):
        below = np.zeros(len(level_sizes), np.int64)
        for parent, share in enumerate(shares.tolist()):
            children = np.flatnonzero(parents == parent)
            below[children] = cut_sizes(level_sizes[children], share, seed)
        shares = below
    return shares


def cut_sizes(sizes: np.ndarray, total: int, seed: int) -> np.ndarray:
    """min(c, size) of each, with the c at which they add up to the total: int [k] -> int [k].

    What is left below a whole c goes, one each, to larger clusters in a seeded order.
    """
    cut = find_cut(sizes, total)
    shares = np.minimum(sizes, cut)
    larger = np.flatnonzero(sizes > cut)
    order = np.argsort(random_bits(larger, seed))
    shares[larger[order[: total - int(shares.sum())]]] += 1
    return np.asarray(shares)


def find_cut(sizes: np.ndarray, total: int) -> int:
    """The largest whole c with Σ min(c, size) ≤ total: int [k] -> int."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    return low
