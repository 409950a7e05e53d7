"""Down-scaled pixels and counted words as vectors: no network, for tests and as a baseline."""

import re
import zlib

import numpy as np

from curate.encoders import Encoder, TextTower, encoder, text_tower_of
from curate.errors import OptionError
from curate.formats.images import Preprocessing

_NUM_BUCKETS = 256


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


@text_tower_of(pixels)
def pixels_text(variant: str, checkpoint: str | None, device: str) -> TextTower:
    """A bag of words: how often the words of each of 256 hash values occur."""
    return TextTower(count_words, "no weights")


def count_words(texts: list[str]) -> np.ndarray:
    """n texts -> float32 [n, 256]. Words are runs of letters and digits, compared without case."""
    counts = np.zeros((len(texts), _NUM_BUCKETS), np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in re.findall(r"\w+", text.casefold()):
            row[zlib.crc32(word.encode()) % _NUM_BUCKETS] += 1
    return counts
