"""How the worth of a sample falls when it is seen again, from training runs of several lengths.

The k-th time that a sample is seen is worth decay^(k − 1) of the first time, so that n samples for
e epochs are worth n · (1 − decay^e) / (1 − decay) that are seen once. The error is a power of that
worth, with one exponent and one asymptote; each kind of data has its own amplitude and decay
(after Muennighoff et al. 2023, arXiv:2305.16264, and Goyal et al. 2024, arXiv:2404.07177).
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.stages.fit.arms import (
    Arm,
    RunFilter,
    SelectionKind,
    baseline_arms,
    group_arms,
    group_by_kind,
    load_runs,
)
from curate.stages.fit.scaling_laws import jackknife_half_width

MIN_EPOCHS = 3  # different numbers of epochs, by which a decay can be told from an amplitude
_MAX_DECAY = 0.9999


class DecayLaw(NamedTuple):
    """error = asymptote + amplitude · worth^−exponent; `amplitudes` and `decays` are by kind."""

    exponent: float
    asymptote: float
    amplitudes: np.ndarray
    decays: np.ndarray

    def __call__(
        self, kinds: np.ndarray, num_samples: np.ndarray, epochs: np.ndarray
    ) -> np.ndarray:
        """The error of kinds, int [n], on so many samples for so many epochs [n] -> [n]."""
        worth = num_samples * times_worth(self.decays[kinds], epochs)
        return np.asarray(self.asymptote + self.amplitudes[kinds] * worth**-self.exponent)


class DecayFit(NamedTuple):
    """The law, and those without each seed in turn.

    `kinds` are by the law's numbers, None for everything and random samples. Of all arms:
    `kind_numbers` int [arms], `sizes` and `epochs` [arms], errors float [arms, seeds].
    """

    law: DecayLaw
    without_seed: list[DecayLaw]
    kinds: list[SelectionKind | None]
    corpus_size: int
    kind_numbers: np.ndarray
    sizes: np.ndarray
    epochs: np.ndarray
    errors: np.ndarray

    @property
    def relative_misfit(self) -> float:
        """The root mean square of what the law misses, as a share of the errors."""
        means = self.errors.mean(axis=1)
        misses = self.law(self.kind_numbers, self.sizes, self.epochs) / means - 1
        return float(np.sqrt((misses**2).mean()))


def times_worth(decay: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """What so many times are worth, in first times: [n], [n] -> [n].

    A part of the first epoch has no sample twice.
    """
    return np.where(epochs < 1, epochs, (1 - decay**epochs) / (1 - decay))


def fit_decay(catalog: Catalog, runs: RunFilter) -> DecayFit | None:
    """Fit the corpus that was trained on for most numbers of epochs; None where these are too few.

    Kinds of selection that were trained for fewer than MIN_EPOCHS are left out. Raises CurateError
    as `group_arms`.
    """
    training_runs = load_runs(catalog, runs)
    lengths: dict[int, set[int]] = {}
    for run in training_runs:
        lengths.setdefault(run.corpus_size, set()).add(run.epochs)
    corpus_size = max(lengths, key=lambda size: (len(lengths[size]), size))
    if len(lengths[corpus_size]) < MIN_EPOCHS:
        return None
    arms = group_arms([run for run in training_runs if run.corpus_size == corpus_size])
    groups: list[tuple[SelectionKind | None, list[Arm]]] = [(None, baseline_arms(arms))]
    groups += [(kind, group) for kind, group in group_by_kind(arms).items()]
    groups = [(kind, group) for kind, group in groups if _has_lengths(group)]
    if len(groups) < 2:
        raise CurateError(
            f"no kind of selection was trained for {MIN_EPOCHS} numbers of epochs: validate the "
            "same ones again with other --epochs"
        )
    all_arms = [arm for _, group in groups for arm in group]
    kind_numbers = np.repeat(np.arange(len(groups)), [len(group) for _, group in groups])
    sizes = np.array([float(arm.num_samples) for arm in all_arms])
    epochs = np.array([arm.presentations / arm.num_samples for arm in all_arms])
    errors = np.stack([arm.errors for arm in all_arms])

    def fit(errors: np.ndarray, start: DecayLaw | None = None) -> DecayLaw:
        return _fit(kind_numbers, sizes, epochs, errors.mean(axis=1), start)

    law = fit(errors)
    without_seed = [fit(np.delete(errors, seed, axis=1), law) for seed in range(errors.shape[1])]
    kinds = [kind for kind, _ in groups]
    return DecayFit(law, without_seed, kinds, corpus_size, kind_numbers, sizes, epochs, errors)


def _has_lengths(arms: list[Arm]) -> bool:
    return len({arm.presentations // arm.num_samples for arm in arms}) >= MIN_EPOCHS


def _fit(
    kinds: np.ndarray,
    sizes: np.ndarray,
    epochs: np.ndarray,
    errors: np.ndarray,
    start: DecayLaw | None,
) -> DecayLaw:
    """Least squares of the relative error, from a law that is near or from several guesses."""
    num_kinds = int(kinds.max()) + 1
    scale = float(np.exp(np.log(sizes).mean()))  # keeps the parameters of one magnitude

    def make_law(parameters: np.ndarray) -> DecayLaw:
        exponent, asymptote = np.exp(parameters[:2])
        amplitudes = np.exp(parameters[2 : 2 + num_kinds])
        return DecayLaw(float(exponent), float(asymptote), amplitudes, parameters[2 + num_kinds :])

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(make_law(parameters)(kinds, sizes / scale, epochs) / errors))

    def pack(exponent: float, share: float, decay: float) -> np.ndarray:
        asymptote = share * errors.min()
        amplitudes = [np.median(errors[kinds == kind]) - asymptote for kind in range(num_kinds)]
        logs = np.log(np.maximum([exponent, asymptote, *amplitudes], 1e-6))
        return np.concatenate([logs, np.full(num_kinds, decay)])

    starts = [pack(*guess) for guess in ((0.3, 0.1, 0.7), (0.3, 0.8, 0.7), (1.0, 0.8, 0.95))]
    if start:
        logs = np.log([start.exponent, start.asymptote])
        amplitudes = np.log(start.amplitudes * scale**-start.exponent)
        starts = [np.concatenate([logs, amplitudes, start.decays])]
    low = [np.log(1e-2), np.log(1e-9), *[np.log(1e-9)] * num_kinds, *[0.0] * num_kinds]
    high = [np.log(10.0), np.log(1.0), *[np.log(1e3)] * num_kinds, *[_MAX_DECAY] * num_kinds]
    inside = [np.clip(guess, np.array(low) + 1e-6, np.array(high) - 1e-6) for guess in starts]
    solutions = [optimize.least_squares(residuals, guess, bounds=(low, high)) for guess in inside]
    law = make_law(min(solutions, key=lambda solution: float(solution.cost)).x)
    return law._replace(amplitudes=law.amplitudes * scale**law.exponent)


class Switch(NamedTuple):
    """From so many epochs of the whole corpus on, the compute is better spent on a larger part.

    `epochs` is None where the larger one is better, or worse, at all budgets from `least` to
    `most`, within which both were trained; `half_factor` is what it may be multiplied or divided
    by (95% over seeds), None where some seeds have no such point.
    """

    smaller: SelectionKind
    larger: SelectionKind | None
    epochs: float | None
    half_factor: float | None
    is_larger_better: bool  # at the most
    least: float
    most: float


def find_switches(fit: DecayFit) -> list[Switch]:
    """For each kind of selection against the next larger one of its strategy and metric, the
    largest against everything."""
    numbers = {kind: number for number, kind in enumerate(fit.kinds)}
    switches = []
    for kind in fit.kinds:
        if kind is None:
            continue
        larger = [
            other
            for other in fit.kinds
            if other and other._replace(keep=kind.keep) == kind and other.keep > kind.keep
        ]
        rival = min(larger, key=lambda other: other.keep, default=None)
        pair = (numbers[kind], numbers[rival])
        keeps = (kind.keep, rival.keep if rival else 1.0)
        switches.append(_find_switch(fit, kind, rival, pair, keeps))
    return switches


def _find_switch(
    fit: DecayFit,
    smaller: SelectionKind,
    larger: SelectionKind | None,
    pair: tuple[int, int],
    keeps: tuple[float, float],
) -> Switch:
    bounds = [
        keep * epochs
        for number, keep in zip(pair, keeps, strict=True)
        for epochs in (_epochs_of(fit, number, keep).min(), _epochs_of(fit, number, keep).max())
    ]
    least, most = max(bounds[::2]), min(bounds[1::2])
    budgets = np.geomspace(least, most, 400)

    def losses_of_larger(law: DecayLaw) -> np.ndarray:
        small, large = (
            law(
                np.full(len(budgets), number),
                np.full(len(budgets), keep * fit.corpus_size),
                budgets / keep,
            )
            for number, keep in zip(pair, keeps, strict=True)
        )
        return np.asarray(large - small)

    crossings = [_crossing(budgets, losses_of_larger(law)) for law in (fit.law, *fit.without_seed)]
    half_factor = None
    if None not in crossings:
        logs = np.log(np.array(crossings[1:], float))
        half_factor = float(np.exp(jackknife_half_width(logs)))
    is_larger_better = bool(losses_of_larger(fit.law)[-1] < 0)
    return Switch(smaller, larger, crossings[0], half_factor, is_larger_better, least, most)


def _epochs_of(fit: DecayFit, number: int, keep: float) -> np.ndarray:
    """The epochs that a kind was trained for; of random samples, those of everything."""
    is_of_kind = fit.kind_numbers == number
    if keep == 1.0:
        is_of_kind &= fit.sizes == fit.sizes[is_of_kind].max()
    return np.asarray(fit.epochs[is_of_kind])


def _crossing(budgets: np.ndarray, losses: np.ndarray) -> float | None:
    """The first budget from which on the larger part loses nothing; None without."""
    falls = np.flatnonzero((losses[:-1] > 0) & (losses[1:] <= 0))
    return float(budgets[falls[0] + 1]) if len(falls) else None
