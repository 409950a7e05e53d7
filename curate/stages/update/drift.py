"""Whether new samples still fit the clusters: their distances against those of the fitted ones.

A centroid is the mean of the n samples that it was fitted on, so these are nearer to it than others
of the same distribution. Each is therefore measured from the mean of the other n − 1, which follows
from its distance d alone. euclidean: d · n/(n − 1). cosine: with R = n · (1 − the mean of d), the
length of the sum of the cluster's rows, 1 − (R(1 − d) − 1) / √(R² − 2R(1 − d) + 1). A new sample is
then beyond the farthest of the n with probability 1/(n + 1), whatever the distribution.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# New centroids are advised where new samples lie so much farther, or so much more of them beyond
# every fitted one than expected, surely: at the bound of the 95% interval.
MAX_EXCESS, MAX_FAR_SHARE = 0.05, 0.01
_LEVEL = 0.05
_NORMAL_975 = NormalDist().inv_cdf(0.975)


# Squared distances from the mean of the others, for cosine half of them, as SQL over assignments
# and the statistics of their clusters: num_samples, mean_distance.
_SUM_LENGTH = "(num_samples * (1 - mean_distance))"
SQUARES_FROM_OTHERS = {
    "cosine": f"1 - ({_SUM_LENGTH} * (1 - distance::double) - 1) / sqrt(greatest("
    f"{_SUM_LENGTH} ** 2 - 2 * {_SUM_LENGTH} * (1 - distance::double) + 1, 1e-12))",
    "euclidean": "(distance::double * num_samples / (num_samples - 1)) ** 2",
}
# The same from the centroids themselves.
SQUARES = {"cosine": "distance::double", "euclidean": "distance::double ** 2"}


class ClusterMoments(NamedTuple):
    """Squared distances by cluster: counts int64 [k]; means, variances, largest float64 [k]."""

    counts: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    largest: np.ndarray


class Drift(NamedTuple):
    """How far samples that came after the fit are from those that it saw; see MAX_EXCESS.

    `excess` of the mean squared distance is a share, with half the width of its 95% interval;
    both are None where no cluster has two fitted samples and a new one.
    """

    num_fitted: int
    num_since_fit: int
    excess: float | None
    excess_interval: float | None
    far_share: float
    expected_far_share: float
    num_compared_clusters: int
    num_drifted_clusters: int
    has_drifted: bool
    worst_clusters: list[tuple[int, int, float]]  # (cluster, new samples, excess) of the drifted


def measure_drift(
    fitted: ClusterMoments, new_clusters: np.ndarray, new_squares: np.ndarray
) -> Drift:
    """Compare new samples, clusters int [m] and squared distances float64 [m], with fitted ones."""
    num_clusters = len(fitted.counts)
    counts = np.bincount(new_clusters, minlength=num_clusters)
    sums = np.bincount(new_clusters, new_squares, minlength=num_clusters)
    is_compared = (counts > 0) & (fitted.counts > 1) & (fitted.means > 0)
    n, m = fitted.counts[is_compared], counts[is_compared]
    expected = fitted.means[is_compared]
    variances = fitted.variances[is_compared]
    differences = sums[is_compared] / m - expected
    errors = np.sqrt(variances * (1 / m + 1 / n))
    limit = NormalDist().inv_cdf(
        1 - _LEVEL / max(len(n), 1)
    )  # one of them exceeds it by chance in 5% of updates
    is_drifted = differences > limit * errors
    excess = interval = None
    if len(n):
        total = float(m @ expected)
        excess = float(m @ differences) / total
        interval = float(_NORMAL_975 * np.sqrt(((m * errors) ** 2).sum()) / total)
    # A cluster without a fitted sample is far from all of them.
    is_far = new_squares > np.where(fitted.counts > 0, fitted.largest, -1.0)[new_clusters]
    chances = 1 / (fitted.counts[new_clusters] + 1.0)
    far_share = float(is_far.mean()) if len(is_far) else 0.0
    expected_far = float(chances.mean()) if len(chances) else 0.0
    far_error = np.sqrt((chances * (1 - chances)).sum()) / max(len(chances), 1)
    far_excess = far_share - expected_far - _NORMAL_975 * far_error
    has_drifted = bool(
        (excess is not None and interval is not None and excess - interval > MAX_EXCESS)
        or far_excess > MAX_FAR_SHARE
    )
    cluster_ids = np.flatnonzero(is_compared)
    relative = differences / np.maximum(expected, np.finfo(np.float64).tiny)
    worst = [
        (int(cluster_ids[index]), int(m[index]), float(relative[index]))
        for index in np.argsort(-(differences / np.maximum(errors, 1e-300)), kind="stable")
        if is_drifted[index]
    ]
    return Drift(
        int(fitted.counts.sum()),
        len(new_clusters),
        excess,
        interval,
        far_share,
        expected_far,
        len(n),
        int(is_drifted.sum()),
        has_drifted,
        worst[:3],
    )
