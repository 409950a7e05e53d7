"""Strategies say which samples are kept. To add one, write a function in a module here:

    @strategy
    def middle(scores: np.ndarray) -> np.ndarray:
        return -np.abs(scores - np.median(scores))

Its parameter names are its inputs, from the table that metrics have too (`stages/inputs/`), here
with all candidates [n] at once, and from that of `stages/select/strategy_inputs.py`: `scores`,
`groups`, `num_kept` and others. Other parameters have defaults, and are options. It returns
priorities, float [n]: the highest is kept first, ties are broken by the stage, from the seed. Or it
returns `Quotas`, where it says itself how many of each group are kept.

One that asks for `num_kept` chooses so many for itself. The stage then makes no quotas of classes;
with `--scope class` or `cluster` it is called once for each of them, as if that were everything.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curate.errors import CurateError, OptionError
from curate.registry import Registry

strategies = Registry("strategy", "curate.strategies")
strategy = strategies.register


class Quotas(NamedTuple):
    """How many samples each group keeps, int [g], and who comes first in a group, float [n].

    `groups` are indices into `sizes`, int [n]. The sizes are whole, none is larger than its group,
    and they add up to `num_kept`.
    """

    sizes: np.ndarray
    groups: np.ndarray
    priorities: np.ndarray


class Neighbours(NamedTuple):
    """The nearest other samples of each, the nearest first: rows int32 [n, k], and distances."""

    indices: np.ndarray
    distances: np.ndarray


def check_option(name: str, value: float, *, is_good: bool, expected: str) -> None:
    """OptionError where an option of a strategy is out of range."""
    if not is_good:
        raise OptionError(f"--option {name}={value:g}: give {expected}")


MAX_DISTANCES = 1 << 34  # of strategies that pass over all vectors for each sample they take


def check_num_passes(strategy_name: str, num_samples: int, num_kept: int) -> None:
    """CurateError where so many passes over so many samples would take days."""
    if num_samples * num_kept > MAX_DISTANCES:
        raise CurateError(
            f"{strategy_name} passes over all samples for each that it keeps, and {num_kept:,} of "
            f"{num_samples:,} are more than 2^34 distances: lower --keep, narrow the candidates "
            "by --within, or divide them by --scope cluster"
        )


def order_priorities(order: Sequence[int], num_samples: int) -> np.ndarray:
    """Priorities of samples that are taken in this order, −inf for all others: float64 [n]."""
    priorities = np.full(num_samples, -np.inf)
    priorities[np.asarray(order, np.int64)] = -np.arange(len(order), dtype=np.float64)
    return priorities


def unit_interval(random: np.ndarray) -> np.ndarray:
    """Random bits as priorities between 0 and 1: uint64 [n] -> float64 [n]."""
    return np.asarray((random >> np.uint64(11)) * 2.0**-53)


def first_of_largest(values: np.ndarray, tiebreak: np.ndarray) -> int:
    """The row of the largest value; of equal ones that of the lowest tiebreak."""
    largest = np.flatnonzero(values == values.max())
    return int(largest[tiebreak[largest].argmin()])


def round_to_total(values: np.ndarray, total: int) -> np.ndarray:
    """Values that add up to a whole total as whole numbers, by largest remainder: [k] -> int [k].

    Each is its floor or its ceiling.
    """
    whole = np.floor(values + 1e-9).astype(np.int64)
    order = np.argsort(whole - values, kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole
