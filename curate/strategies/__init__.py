"""Strategies turn scores into priorities: the highest priority is kept first.

    @strategy
    def middle(scores: np.ndarray) -> np.ndarray:
        ...

Its parameter names are its inputs, out of `scores` [n], `sample_ids` [n] and `seed`; every sample
given has a score. Ties are broken by the stage, from the seed.
"""

from curate.registry import Registry

strategies = Registry("strategy", "curate.strategies")
strategy = strategies.register
