"""Scaling laws: how a test error falls with the number of training samples, with intervals.

The Pareto envelope of Sorscher et al. 2022 (arXiv:2206.14486, section 3) is the least error for a
number of samples over all initial sizes and fractions kept. The least of many noisy errors is too
low, so here an arm is chosen by other seeds than it is measured by.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

FORMS = ("power", "exponential")
_CONFIDENCE = 0.95


class Law(NamedTuple):
    """error = asymptote + amplitude · n^−exponent, or · exp(−exponent · n) (exponential)."""

    form: str
    exponent: float
    amplitude: float
    asymptote: float

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        """The error at sizes [n] -> [n]."""
        if self.form == "power":
            decay = sizes**-self.exponent
        else:
            decay = np.exp(-self.exponent * sizes)
        return np.asarray(self.asymptote + self.amplitude * decay)


def fit_law(sizes: np.ndarray, errors: np.ndarray, form: str = "power") -> Law:
    """Least squares of the relative error: sizes [n], errors [n]. The asymptote is at least 0."""
    # Sizes in units of their mean keep the three parameters of one magnitude.
    scale = float(np.exp(np.log(sizes).mean()))
    scaled_sizes = sizes / scale

    def make_law(log_parameters: np.ndarray) -> Law:
        exponent, amplitude, asymptote = np.exp(log_parameters)
        return Law(form, float(exponent), float(amplitude), float(asymptote))

    def residuals(log_parameters: np.ndarray) -> np.ndarray:
        predicted = np.maximum(make_law(log_parameters)(scaled_sizes), 1e-12)
        return np.asarray(np.log(predicted) - np.log(errors))

    lowest = float(errors.min())
    starts = [
        [
            np.log(exponent),
            np.log(max(errors.max() - share * lowest, 1e-6)),
            np.log(share * lowest),
        ]
        for exponent in (0.2, 1.0)
        for share in (0.1, 0.9)
    ]
    bounds = (
        [np.log(1e-3), np.log(1e-9), np.log(1e-9)],
        [np.log(50.0), np.log(1e3), np.log(1.0)],
    )
    solutions = [optimize.least_squares(residuals, start, bounds=bounds) for start in starts]
    law = make_law(min(solutions, key=lambda solution: float(solution.cost)).x)
    if form == "power":
        return law._replace(amplitude=law.amplitude * scale**law.exponent)
    return law._replace(exponent=law.exponent / scale)


def envelope(sizes: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Pareto envelope of arms, sizes [arms] and errors [arms, seeds]: (levels, errors).

    That is the least error with no more than so many samples. Each seed's error is read at the arms
    that are best by the other seeds; these are averaged. Needs two seeds.
    """
    levels, num_seeds = np.unique(sizes), errors.shape[1]
    mean_of_others = (errors.sum(axis=1, keepdims=True) - errors) / (num_seeds - 1)
    is_small_enough = sizes <= levels[:, None]
    candidates = np.where(is_small_enough[:, :, None], mean_of_others, np.inf)
    best_arm = candidates.argmin(axis=1)  # for each level and seed
    return levels.astype(float), errors[best_arm, np.arange(num_seeds)].mean(axis=1)


class FittedLaw(NamedTuple):
    """A law, and the 95% interval of its exponent over seeds."""

    law: Law
    low: float
    high: float


def fit_arms(
    sizes: np.ndarray, errors: np.ndarray, *, pareto: bool, form: str = "power"
) -> FittedLaw:
    """Fit arms, sizes [arms] and errors [arms, seeds]: their mean, or their envelope.

    The interval is Student's t around the logarithm of the exponent, with the jackknife's standard
    error: each seed left out in turn, and with it its part in the choice of arms (Efron and
    Tibshirani, An Introduction to the Bootstrap, 11.5). Needs three seeds.
    """

    def fit(errors: np.ndarray) -> Law:
        if pareto:
            levels, means = envelope(sizes, errors)
        else:
            levels, means = sizes.astype(float), errors.mean(axis=1)
        return fit_law(levels, means, form)

    num_seeds = errors.shape[1]
    law = fit(errors)
    without_seed = [fit(np.delete(errors, seed, axis=1)).exponent for seed in range(num_seeds)]
    standard_error = np.sqrt((num_seeds - 1) * np.log(without_seed).var())
    half_width = stats.t.ppf((1 + _CONFIDENCE) / 2, num_seeds - 1) * standard_error
    factor = np.exp(half_width)
    return FittedLaw(law, float(law.exponent / factor), float(law.exponent * factor))
