"""Down-scaled pixels as vectors: no network, for tests and as the weakest baseline."""

import numpy as np

from curate.encoders import Encoder, encoder
from curate.errors import OptionError
from curate.formats.images import Preprocessing


@encoder
def pixels(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """Every channel value of the image squashed to 8 × 8, or to SIZE × SIZE, in [-1, 1]."""
    if checkpoint:
        raise OptionError("pixels has no weights: leave out --checkpoint")
    edge = size or 8
    preprocessing = Preprocessing(size=edge, resize_to=edge, resize="squash")
    return Encoder(flatten, preprocessing, "no weights")


def flatten(images: np.ndarray) -> np.ndarray:
    """[n, 3, h, w] -> [n, 3·h·w]."""
    return images.reshape(len(images), -1)
