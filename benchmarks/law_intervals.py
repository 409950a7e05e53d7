"""How often do the intervals of `curate fit` contain the truth?

    python benchmarks/law_intervals.py --simulations 100

In a made world: corpora of four sizes, random samples and three kinds of selection in each, whose
errors follow power laws, with noise of each run and noise that all runs of a seed share. Printed is
the share of simulations in which the interval holds the exponent that a fit to the true errors has:
that of random samples, that of the envelope, and their difference.
"""

import argparse

import numpy as np

from curate.stages.fit.scaling_laws import FittedLaw, compare_exponents, fit_arms

CORPORA = np.array([500, 2000, 10_000, 50_000])
RANDOM_SIZES = np.outer(CORPORA, [1, 0.8, 0.5, 0.3]).ravel()
PRUNED_SIZES = np.outer(CORPORA, [0.8, 0.5, 0.3]).ravel()
WORTH = np.tile([1.05, 1.3, 0.9], len(CORPORA))  # random samples that a kept one is worth
RUN_NOISE, SEED_NOISE = 0.01, 0.004  # relative


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--simulations", type=int, default=200)
    num_simulations = parser.parse_args().simulations
    print("| form | seeds | random | envelope | envelope − random |\n|---|---|---|---|---|")
    for form, floor in (("pure-power", 0.0), ("power", 0.1)):
        errors = np.concatenate(
            [
                floor + 2 * RANDOM_SIZES**-0.3,
                floor + 2 * (WORTH * PRUNED_SIZES) ** -0.33,
            ]
        )
        for num_seeds in (3, 5, 10):
            shares = simulate(form, errors, num_seeds, num_simulations)
            print(f"| {form} | {num_seeds} | {' | '.join(f'{share:.1%}' for share in shares)} |")


def simulate(form: str, errors: np.ndarray, num_seeds: int, num_simulations: int) -> np.ndarray:
    """The shares of intervals that hold the truth, [3]."""
    generator = np.random.default_rng(0)
    true_random, true_pareto = fit(form, errors[:, None].repeat(3, axis=1))
    true_difference = true_pareto.law.exponent - true_random.law.exponent
    num_held = np.zeros(3)
    for _ in range(num_simulations):
        noise = RUN_NOISE * generator.standard_normal((len(errors), num_seeds))
        noise += SEED_NOISE * generator.standard_normal(num_seeds)
        random, pareto = fit(form, errors[:, None] * (1 + noise))
        difference = compare_exponents(pareto, random)
        num_held += [
            random.low <= true_random.law.exponent <= random.high,
            pareto.low <= true_pareto.law.exponent <= pareto.high,
            abs(difference.estimate - true_difference) <= difference.half_width,
        ]
    return num_held / num_simulations


def fit(form: str, errors: np.ndarray) -> tuple[FittedLaw, FittedLaw]:
    """The laws of random samples and of the envelope; errors [arms, seeds]."""
    sizes = np.concatenate([RANDOM_SIZES, PRUNED_SIZES])
    random = fit_arms(RANDOM_SIZES, errors[: len(RANDOM_SIZES)], pareto=False, form=form)
    return random, fit_arms(sizes, errors, pareto=True, form=form)


if __name__ == "__main__":
    main()
