"""The interval of a difference in accuracy, over training seeds and over test samples.

Seeds and test samples are two crossed random effects, as readers and cases are in radiology:
Obuchowski & Rockette 1995, with the degrees of freedom of Hillis 2007 and two pseudo samples after
Agresti & Min 2005. All numbers are shares, not points.
"""

import math
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Difference(NamedTuple):
    """A mean difference of `seeds` runs on `num_test` samples, and what its variance is made of.

    `variance` is that of the mean, with `freedom` degrees of freedom. `seed_variance`,
    `sample_variance` and `residual_variance` are the components: of one seed, of one test sample
    and of one answer.
    """

    mean: float
    variance: float
    freedom: float
    seeds: int
    num_test: int
    seed_variance: float
    sample_variance: float
    residual_variance: float

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the interval that covers the true difference in `level` of cases."""
        return _t_quantile(level, self.freedom) * math.sqrt(self.variance)


def paired_difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """`b` minus `a`: right answers, bool [seeds, test samples], paired by seed and by sample.

    One +1 and one −1 per seed are appended: they leave the mean alone, and keep the interval from
    shrinking to nothing where two arms hardly differ. At least two seeds are needed.
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] < 2 or not a.shape[1]:
        raise ValueError(f"{a.shape} and {b.shape} are not one shape [seeds ≥ 2, samples ≥ 1]")
    seeds, num_test = a.shape
    columns = num_test + 2
    # Sums over rows and columns and the sum of squares are all that is needed.
    difference = b.astype(np.int8) - a.astype(np.int8)
    row_sums = difference.sum(axis=1, dtype=np.int64)
    column_means = np.empty(columns)
    column_means[:num_test] = difference.sum(axis=0, dtype=np.int64) / seeds
    column_means[num_test:] = 1.0, -1.0
    sum_of_squares = np.count_nonzero(difference) + 2 * seeds
    row_means = row_sums / columns
    mean = row_means.mean()
    seed_square = columns * row_means.var(ddof=1)
    sample_square = seeds * column_means.var(ddof=1)
    residual = (
        sum_of_squares
        - columns * np.square(row_means).sum()
        - seeds * np.square(column_means).sum()
        + seeds * columns * mean**2
    )
    residual_square = max(residual, 0.0) / ((seeds - 1) * (columns - 1))
    total = seed_square + max(sample_square - residual_square, 0.0)
    denominator = seed_square**2 / (seeds - 1)
    if sample_square > residual_square:
        denominator += sample_square**2 / (columns - 1)
        denominator += residual_square**2 / ((seeds - 1) * (columns - 1))
    freedom = total**2 / denominator if denominator > 0 else 0.0
    return Difference(
        mean=float(row_sums.sum() / (seeds * num_test)),
        variance=float(total / (seeds * columns)),
        freedom=float(max(freedom, seeds - 1)),
        seeds=seeds,
        num_test=num_test,
        seed_variance=float(max((seed_square - residual_square) / columns, 0.0)),
        sample_variance=float(max((sample_square - residual_square) / seeds, 0.0)),
        residual_variance=float(residual_square),
    )


def predicted_half_width(
    difference: Difference, seeds: int, num_test: int, level: float = LEVEL
) -> float:
    """About the half width that so many seeds and test samples would give, by the components."""
    variance = (
        difference.seed_variance / seeds
        + difference.sample_variance / num_test
        + difference.residual_variance / (seeds * num_test)
    )
    return _t_quantile(level, max(difference.freedom, seeds - 1)) * math.sqrt(variance)


def _t_quantile(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))
