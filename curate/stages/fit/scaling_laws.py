"""Scaling laws: how a test error falls with the number of training samples, with intervals.

The Pareto envelope of Sorscher et al. 2022 (arXiv:2206.14486, section 3) is the least error for a
number of samples over all initial sizes and fractions kept. The least of many noisy errors is too
low, so here an arm is chosen by other seeds than it is measured by.

Intervals are the jackknife's over seeds: each seed left out in turn, and with it its part in the
choice of arms (Efron and Tibshirani, An Introduction to the Bootstrap, 11.5), with Student's t.
They cover chance between seeds, and not that the errors may follow another law.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

FORMS = ("power", "pure-power", "exponential")
# A law needs one size more than it has parameters, or nothing could contradict it.
MIN_SIZES = {"power": 4, "pure-power": 3, "exponential": 4}
MIN_SEEDS = 3
CONFIDENCE = 0.95
_LEAST_EXPONENT = 1e-3


class Law(NamedTuple):
    """error = asymptote + amplitude · n^−exponent (power; pure-power has no asymptote).

    Exponential: asymptote + amplitude · exp(−exponent · n).
    """

    form: str
    exponent: float
    amplitude: float
    asymptote: float

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        """The error at sizes [n] -> [n]."""
        if self.form == "exponential":
            decay = np.exp(-self.exponent * sizes)
        else:
            decay = sizes**-self.exponent
        return np.asarray(self.asymptote + self.amplitude * decay)


def fit_law(sizes: np.ndarray, errors: np.ndarray, form: str = "power") -> Law:
    """Least squares of the relative error: sizes [n], errors [n]. The asymptote is at least 0."""
    if form == "pure-power":
        return _fit_line(np.log(sizes), np.log(errors))
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
        [np.log(_LEAST_EXPONENT), np.log(1e-9), np.log(1e-9)],
        [np.log(50.0), np.log(1e3), np.log(1.0)],
    )
    solutions = [optimize.least_squares(residuals, start, bounds=bounds) for start in starts]
    law = make_law(min(solutions, key=lambda solution: float(solution.cost)).x)
    if form == "power":
        return law._replace(amplitude=law.amplitude * scale**law.exponent)
    return law._replace(exponent=law.exponent / scale)


def _fit_line(log_sizes: np.ndarray, log_errors: np.ndarray) -> Law:
    """The pure power law is a line of logarithms; an error that does not fall is a flat one."""
    slope = float(np.polyfit(log_sizes, log_errors, 1)[0])
    exponent = max(-slope, _LEAST_EXPONENT)
    amplitude = float(np.exp((log_errors + exponent * log_sizes).mean()))
    return Law("pure-power", exponent, amplitude, 0.0)


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


class Interval(NamedTuple):
    """An estimate and the half width of its 95% interval."""

    estimate: float
    half_width: float


class FittedLaw(NamedTuple):
    """A law, the 95% interval of its exponent, and the laws without each seed in turn."""

    law: Law
    low: float
    high: float
    without_seed: list[Law]


def fit_arms(
    sizes: np.ndarray, errors: np.ndarray, *, pareto: bool, form: str = "power"
) -> FittedLaw:
    """Fit arms, sizes [arms] and errors [arms, seeds]: their mean, or their envelope.

    The interval is of the logarithm of the exponent, so that it stays above 0. Needs three seeds.
    """

    def fit(errors: np.ndarray) -> Law:
        if pareto:
            levels, means = envelope(sizes, errors)
        else:
            levels, means = sizes.astype(float), errors.mean(axis=1)
        return fit_law(levels, means, form)

    law = fit(errors)
    without_seed = [fit(np.delete(errors, seed, axis=1)) for seed in range(errors.shape[1])]
    log_exponents = np.log([law_without.exponent for law_without in without_seed])
    factor = np.exp(jackknife_half_width(log_exponents))
    return FittedLaw(law, float(law.exponent / factor), float(law.exponent * factor), without_seed)


def jackknife_half_width(without_seed: np.ndarray, num_comparisons: int = 1) -> float:
    """Half the width of the 95% interval of an estimate, from its values without each seed [seeds].

    With several comparisons all intervals together hold the truth in 95 of 100 cases (Bonferroni).
    """
    num_seeds = len(without_seed)
    standard_error = np.sqrt((num_seeds - 1) * without_seed.var())
    level = (1 - CONFIDENCE) / num_comparisons
    return float(special.stdtrit(num_seeds - 1, 1 - level / 2) * standard_error)  # Student's t


def compare_exponents(first: FittedLaw, second: FittedLaw) -> Interval:
    """The first law's exponent less the second's, paired: both are fitted to the same seeds."""
    differences = [
        first_law.exponent - second_law.exponent
        for first_law, second_law in zip(first.without_seed, second.without_seed, strict=True)
    ]
    estimate = first.law.exponent - second.law.exponent
    return Interval(estimate, jackknife_half_width(np.array(differences)))
