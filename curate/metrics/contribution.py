"""How much a sample contributes to what is held out: the Learning Law of Gu et al. 2024.

arXiv:2402.17759, section 3: where learning is optimal, all samples that are no noise contribute
alike.
"""

import numpy as np

from curate.metrics import metric


@metric
def contribution(contributions: np.ndarray) -> np.ndarray:
    """∇L(held out) · ∇l(sample), by the last layer: [n, m] -> [n], mean over models.

    How fast a step of gradient descent on the sample lowers the loss of the held-out samples, those
    of `curate probe --test`. What helps scores high; below 0 it hurts. Rank by samples that are
    held out from the final test too.
    """
    return np.asarray(contributions.mean(axis=1, dtype=np.float64))
