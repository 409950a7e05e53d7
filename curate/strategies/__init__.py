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

from typing import NamedTuple

import numpy as np

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
