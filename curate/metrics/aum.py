"""Area under the margin, the metric of Pleiss et al. 2020 (arXiv:2001.10528, section 3)."""

import numpy as np

from curate.metrics import metric


@metric
def aum(margins: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minus the mean margin over presentations and models: [n, m], [n] -> [n].

    The margin is the own logit less the largest other. The paper takes a small area for a wrong
    label; here the sign is turned, so that what is hard scores high.
    """
    return np.where(labels >= 0, -margins.mean(axis=1, dtype=np.float64), np.nan)
