"""Scaling laws: how a test error falls with the number of training samples, and how sure the exponent is.

The Pareto envelope of Sorscher et al. 2022 (arXiv:2206.14486, section 3) is the least error for a number of samples over all
initial sizes and fractions kept. The least of many noisy errors lies too low, so here an arm is chosen by other seeds than it
is measured by.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

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

    Each seed's error is read at the arms that are best by the other seeds; these are averaged. Needs two seeds.
    """
    levels, seeds = np.unique(sizes), errors.shape[1]
    others = (errors.sum(axis=1, keepdims=True) - errors) / (seeds - 1)
    allowed = sizes <= levels[:, None]
    best = np.where(allowed[:, :, None], others, np.inf).argmin(axis=1)  # an arm for each level and seed
    return levels.astype(float), errors[best, np.arange(seeds)].mean(axis=1)


class Interval(NamedTuple):
    """A law, and the 95% interval of its exponent over seeds."""

    law: Law
    low: float
    high: float


def fit_arms(sizes: np.ndarray, errors: np.ndarray, *, pareto: bool, form: str = "power") -> Interval:
    """Fit arms, sizes [arms] and errors [arms, seeds]: their mean, or their envelope. Needs three seeds.

    The interval is Student's t around the logarithm of the exponent, with the jackknife's standard error: each seed left
    out in turn, and with it its part in the choice of arms (Efron and Tibshirani, An Introduction to the Bootstrap, 11.5).
    """

    def one(chosen: np.ndarray) -> Law:
        levels, means = envelope(sizes, chosen) if pareto else (sizes.astype(float), chosen.mean(axis=1))
        return fit(levels, means, form)

    count = errors.shape[1]
    law = one(errors)
    without = np.log([one(np.delete(errors, seed, axis=1)).exponent for seed in range(count)])
    reach = stats.t.ppf(0.975, count - 1) * np.sqrt((count - 1) * without.var())
    return Interval(law, float(law.exponent * np.exp(-reach)), float(law.exponent * np.exp(reach)))
