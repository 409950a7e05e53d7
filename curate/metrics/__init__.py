"""Metrics say how much a sample is worth keeping. To add one, write a function in a new module here:

    @metric
    def margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        ...

Its parameter names are its inputs; `curate/stages/score.py` holds the one table from name to
loader. It is called for one shard at a time and returns float [n]. A high score always means
worth keeping; NaN means that the sample cannot be scored.
"""

from curate.registry import Registry

metrics = Registry("metric", "curate.metrics")
metric = metrics.register
