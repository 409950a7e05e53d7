"""Scaling laws: how a test error falls with the number of training samples, and how sure the exponent is.

The Pareto envelope of Sorscher et al. 2022 (arXiv:2206.14486, section 3) is the least error for a number of samples over all
initial sizes and fractions kept. The least of many noisy errors lies too low, so here an arm is chosen by one half of the
seeds and measured by the other.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

FORMS = ("power", "exponential")


class Law(NamedTuple):
    """error = asymptote + amplitude · n^−exponent (power), or asymptote + amplitude · exp(−exponent · n) (exponential)."""

    form: str
    exponent: float
    amplitude: float
    asymptote: float

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        """The error at sizes [n] -> [n]."""
        falling = sizes**-self.exponent if self.form == "power" else np.exp(-self.exponent * sizes)
        return np.asarray(self.asymptote + self.amplitude * falling)


def fit(sizes: np.ndarray, errors: np.ndarray, form: str = "power") -> Law:
    """Least squares of the relative error over exponent, amplitude and an asymptote of at least 0: [n], [n]."""
    scale = float(np.exp(np.log(sizes).mean()))  # sizes in units of their mean keep the three numbers alike
    n = sizes / scale

    def law(parameters: np.ndarray) -> Law:
        exponent, amplitude, asymptote = np.exp(parameters)
        return Law(form, float(exponent), float(amplitude), float(asymptote))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(np.maximum(law(parameters)(n), 1e-12)) - np.log(errors))

    low = float(errors.min())
    starts = [[np.log(exponent), np.log(max(errors.max() - share * low, 1e-6)), np.log(share * low)]
              for exponent in (0.2, 1.0) for share in (0.1, 0.9)]  # fmt: skip
    bounds = ([np.log(1e-3), np.log(1e-9), np.log(1e-9)], [np.log(50.0), np.log(1e3), np.log(1.0)])
    found = min((optimize.least_squares(residuals, start, bounds=bounds) for start in starts), key=lambda one: float(one.cost))
    best = law(found.x)
    if form == "power":
        return best._replace(amplitude=best.amplitude * scale**best.exponent)
    return best._replace(exponent=best.exponent / scale)


def envelope(sizes: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Pareto envelope of arms, sizes [arms] and errors [arms, seeds]: the least error with no more than so many samples.

    Arms are chosen by every second seed and measured by the others, both ways round, and the two are averaged.
    """
    halves = [np.arange(errors.shape[1]) % 2 == half for half in (0, 1)]
    levels = np.unique(sizes)
    found = np.zeros(len(levels))
    for choosing, measuring in (halves, halves[::-1]):
        means, others = errors[:, choosing].mean(axis=1), errors[:, measuring].mean(axis=1)
        best = [np.flatnonzero(sizes <= level)[means[sizes <= level].argmin()] for level in levels]
        found += others[best] / 2
    return levels.astype(float), found


class Interval(NamedTuple):
    """A law, and the 95% bootstrap interval of its exponent over seeds."""

    law: Law
    low: float
    high: float


def fit_arms(
    sizes: np.ndarray, errors: np.ndarray, *, pareto: bool, form: str = "power", draws: int = 200, seed: int = 0
) -> Interval:
    """Fit arms, sizes [arms] and errors [arms, seeds]: their mean, or their envelope. Seeds are drawn again `draws` times."""
    generator = np.random.default_rng(seed)

    def one(chosen: np.ndarray) -> Law:
        levels, means = envelope(sizes, chosen) if pareto else (sizes.astype(float), chosen.mean(axis=1))
        return fit(levels, means, form)

    count = errors.shape[1]
    exponents = [one(errors[:, generator.integers(0, count, count)]).exponent for _ in range(draws)]
    low, high = np.quantile(exponents, [0.025, 0.975])
    return Interval(one(errors), float(low), float(high))
