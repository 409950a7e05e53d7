"""Coverage of the whole range of difficulty, without its hardest end.

Zheng et al. 2023, "Coverage-centric coreset selection for high pruning rates" (arXiv 2210.15809):
at high pruning rates the hardest samples are mostly mislabelled, and what is kept of the others
should come from every difficulty alike.
"""

import numpy as np

from curate.errors import CurateError
from curate.random_hash import random_bits
from curate.strategies import Quotas, check_option, strategy, unit_interval

# β by the fraction kept: the paper's for CIFAR-10 at 0.1 and 0.2, and the line through them.
_KEPT, _BETAS = (0.1, 0.4), (0.3, 0.0)
_MAX_STRATA = 10_000


@strategy
def coverage(
    scores: np.ndarray,
    sample_ids: np.ndarray,
    num_kept: int,
    seed: int,
    beta: float | None = None,
    strata: int = 50,
) -> Quotas:
    """Without the hardest `beta`, as many from each of 50 strata of the scores: [n] -> Quotas.

    The strata have equal width; inside one the draw is random. beta is 0.3 to a fraction kept of
    0.1, 0 from 0.4 on, and on the line between. CurateError where beta leaves too few.
    """
    num_samples = len(scores)
    if beta is None:
        beta = float(np.interp(num_kept / num_samples, _KEPT, _BETAS))
    check_option("beta", beta, is_good=0 <= beta < 1, expected="a fraction from 0 to below 1")
    is_good = 1 <= strata <= _MAX_STRATA
    check_option("strata", strata, is_good=is_good, expected=f"a number from 1 to {_MAX_STRATA:,}")
    random = random_bits(sample_ids, seed)
    num_dropped = int(beta * num_samples)
    is_dropped = np.zeros(num_samples, bool)
    is_dropped[np.lexsort((random, -scores))[:num_dropped]] = True
    remaining = scores[~is_dropped]
    least_score, largest_score = float(remaining.min()), float(remaining.max())
    groups = np.full(num_samples, strata)  # the last group is what was dropped
    width = (largest_score - least_score) / strata or 1.0
    groups[~is_dropped] = np.minimum((remaining - least_score) / width, strata - 1).astype(np.int64)
    sizes = np.bincount(groups, minlength=strata + 1)
    budgets = stratum_budgets(num_kept, sizes[:strata])
    if budgets.sum() < num_kept:
        raise CurateError(
            f"coverage: without the hardest {beta:g} there are {budgets.sum():,} of the "
            f"{num_kept:,} samples to keep: lower --option beta, or --keep"
        )
    return Quotas(np.append(budgets, 0), groups, unit_interval(random))


def stratum_budgets(budget: int, sizes: np.ndarray) -> np.ndarray:
    """How many of each stratum: equally many, and what a small one lacks goes to the larger ones.

    int [strata] -> int [strata]; they add up to less than the budget where all are too small.
    """
    budgets = np.zeros(len(sizes), np.int64)
    remaining = budget
    for number, stratum in enumerate(np.argsort(sizes, kind="stable")):
        budgets[stratum] = min(sizes[stratum], remaining // (len(sizes) - number))
        remaining -= budgets[stratum]
    return budgets
