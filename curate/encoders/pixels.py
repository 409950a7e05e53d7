"""Down-scaled pixels as vectors: no network, for tests and as the weakest baseline."""

import numpy as np

from curate.encoders import Encoder, encoder
from curate.errors import CurateError
from curate.images import Preprocessing


@encoder
def pixels(variant: str, checkpoint: str | None, size: int | None) -> Encoder:
    """Every channel value of the image squashed to 8 × 8, or to SIZE × SIZE with pixels@SIZE, in [-1, 1]."""
    if checkpoint:
        raise CurateError("pixels has no weights: leave out --checkpoint")
    side = size or 8
    return Encoder(flatten, Preprocessing(size=side, resize_to=side, resize="squash"), "no weights")


def flatten(images: np.ndarray) -> np.ndarray:
    """[n, 3, h, w] -> [n, 3·h·w]."""
    return images.reshape(len(images), -1)
