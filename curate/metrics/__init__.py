"""Metrics say how much a sample is worth keeping. To add one, write a function in a module here:

    @metric
    def margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        ...

Its parameter names are its inputs; the table from name to loader is in `stages/inputs/`.
Other parameters have defaults, and are options. It is called for some samples at a time and returns
float [n], or such scores and their standard errors. A high score always means worth keeping; NaN
means that the sample cannot be scored. With one in a file of your own:
`curate score --metric-file file.py:margin`.
"""

from curate.registry import Registry

metrics = Registry("metric", "curate.metrics")
metric = metrics.register
