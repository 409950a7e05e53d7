"""Uncertainty of an ensemble, by which Chitta et al. 2021 choose training subsets.

arXiv:1905.12737, section 3.
"""

import numpy as np

from curate.errors import OptionError
from curate.metrics import metric


@metric
def ensemble_active_learning(
    probabilities: np.ndarray, acquisition: str = "mutual_information"
) -> np.ndarray:
    """How unsure an ensemble is, without a look at labels: [n, m, classes] -> [n].

    `acquisition` is mutual_information, H(mean p) − mean H(p), in nats; entropy, H(mean p); or
    variation_ratio, 1 − the share of the vote that most models give. Unsure is hard, so it scores
    high.
    """
    mean = probabilities.mean(axis=1, dtype=np.float64)
    if acquisition == "mutual_information":
        return np.asarray(_entropy(mean) - _entropy(probabilities.astype(np.float64)).mean(axis=1))
    if acquisition == "entropy":
        return _entropy(mean)
    if acquisition == "variation_ratio":
        votes = probabilities.argmax(axis=2)[:, :, None] == np.arange(probabilities.shape[2])
        return np.asarray(1 - votes.mean(axis=1).max(axis=1))
    raise OptionError(
        f"no acquisition called '{acquisition}'; "
        "there are: mutual_information, entropy, variation_ratio"
    )


@metric
def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of a model's prediction in nats, mean over models: [n, m, classes] -> [n].

    Unsure is hard, so it scores high.
    """
    return np.asarray(_entropy(probabilities.astype(np.float64)).mean(axis=1))


@metric
def confidence(probabilities: np.ndarray) -> np.ndarray:
    """1 − the largest probability, mean over models: [n, m, classes] -> [n].

    Not confident is hard, so it scores high.
    """
    return np.asarray(1 - probabilities.max(axis=2).mean(axis=1, dtype=np.float64))


@metric
def margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The largest other probability less that of the own class, mean over models.

    [n, m, classes], [n] -> [n]. Above 0 the sample is wrong; hard scores high.
    """
    own_class = np.maximum(labels, 0)[:, None, None]
    own_probability = np.take_along_axis(probabilities, own_class, axis=2)[:, :, 0]
    rivals = probabilities.copy()
    np.put_along_axis(rivals, own_class, -np.inf, axis=2)
    margins = (rivals.max(axis=2) - own_probability).mean(axis=1, dtype=np.float64)
    return np.where(labels >= 0, margins, np.nan)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(probabilities, 1e-30))
    return np.asarray(-(probabilities * logs).sum(axis=-1))
