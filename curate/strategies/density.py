"""Density-based pruning: fewer samples of clusters that are dense and near to others.

Abbas et al. 2024, "Effective pruning of web-scale datasets based on complexity of concept clusters"
(arXiv 2401.04578).
"""

import numpy as np

from curate.strategies import Quotas, check_option, round_to_total, strategy

_NUM_NEAREST = 20
_TILE_VALUES = 1 << 24  # distances between centroids at a time


@strategy
def density(
    clusters: np.ndarray,
    distances: np.ndarray,
    centroids: np.ndarray,
    distance: str,
    num_kept: int,
    scores: np.ndarray | None = None,
    temperature: float = 0.1,
) -> Quotas:
    """More of each cluster the wider it is and the farther from others, its hardest first.

    [n], [n], [k, d] -> Quotas. A cluster's complexity is the mean distance of its samples to its
    centroid times the mean distance of its centroid to the 20 nearest others; its share of the
    budget is the softmax of complexity / temperature, at least one sample and at most all. Hardest
    is farthest from the centroid, or by `scores` where a scoring was given.
    """
    check_option("temperature", temperature, is_good=temperature > 0, expected="one above 0")
    num_clusters = len(centroids)
    sizes = np.bincount(clusters, minlength=num_clusters)
    spread = np.bincount(clusters, distances, minlength=num_clusters) / np.maximum(sizes, 1)
    is_used = sizes > 0
    complexity = spread[is_used] * centroid_separation(centroids[is_used], distance)
    least = np.full(int(is_used.sum()), int(is_used.sum() <= num_kept))
    shares = cluster_shares(complexity, temperature)
    target_sizes = fit_sizes(shares, num_kept, least, sizes[is_used])
    quotas = np.zeros(num_clusters, np.int64)
    quotas[is_used] = round_to_total(target_sizes, num_kept)
    return Quotas(quotas, clusters, distances if scores is None else scores)


def cluster_shares(complexity: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(complexity / temperature): [k] -> float64 [k]."""
    weights = np.exp((complexity - complexity.max()) / temperature)
    return np.asarray(weights / weights.sum())


def fit_sizes(shares: np.ndarray, total: int, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The sizes nearest to shares · total within limits that add up to the total: [k] -> [k].

    They minimise ½‖x − p·N‖² under Σx = N and least ≤ x ≤ most. By the conditions of Karush, Kuhn
    and Tucker x = clip(p·N + λ, least, most), with λ by bisection.
    """
    target_sizes = shares * total
    low, high = float((least - target_sizes).min()), float((most - target_sizes).max())
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(target_sizes + middle, least, most).sum() < total:
            low = middle
        else:
            high = middle
    return np.asarray(np.clip(target_sizes + high, least, most))


def centroid_separation(centroids: np.ndarray, distance: str) -> np.ndarray:
    """The mean distance of each centroid to the 20 nearest others: [k, d] -> float64 [k].

    1 − x·c of unit rows for cosine, ‖x − c‖ for euclidean; 1 where there is no other.
    """
    num_clusters = len(centroids)
    count = min(_NUM_NEAREST, num_clusters - 1)
    if not count:
        return np.ones(num_clusters)
    rows = centroids.astype(np.float64)
    squares = np.einsum("kd,kd->k", rows, rows)
    separation = np.empty(num_clusters)
    step = max(_TILE_VALUES // num_clusters, 1)
    for start in range(0, num_clusters, step):
        tile = slice(start, start + step)
        products = rows[tile] @ rows.T
        if distance == "cosine":
            values = 1 - products
        else:
            values = np.sqrt(np.maximum(squares[tile, None] - 2 * products + squares, 0))
        own = np.arange(len(values))
        values[own, start + own] = np.inf
        nearest = np.partition(values, count - 1, axis=1)[:, :count]
        separation[tile] = nearest.mean(axis=1)
    return separation
