"""Copies of images as they go around: compressed again, resized, cropped and recoloured.

The work of `curate dedup --calibrate`; it knows no catalog.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.formats.images import ImageDecodeError, decode_image, decode_rgb
from curate.formats.sample_locations import find_image, read_sample
from curate.stages.embed.inference import EncoderPlan, load_forward

_MIN_EDGE = 2  # pixels that a resized or cropped copy has at least

Distortion = Callable[[Image.Image, np.random.Generator], bytes]


def _compress(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return file.getvalue()


def _save(image: Image.Image) -> bytes:
    """Without loss, so that what was done before is all that was done."""
    file = io.BytesIO()
    image.save(file, format="BMP")
    return file.getvalue()


def _resize(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(round(edge * factor), _MIN_EDGE) for edge in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, factor: float, generator: np.random.Generator) -> Image.Image:
    """A part with edges of this share of the whole's, anywhere in it."""
    width, height = (min(max(round(edge * factor), _MIN_EDGE), edge) for edge in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _recolour(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each more or less by up to this share."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + generator.uniform(-strength, strength))
    return image


def _change_a_little(image: Image.Image, generator: np.random.Generator) -> bytes:
    cropped = _crop(image, 0.95, generator)
    return _compress(_recolour(_resize(cropped, 0.7), 0.1, generator), 75)


DISTORTIONS: dict[str, Distortion] = {
    "jpeg-75": lambda image, generator: _compress(image, 75),
    "jpeg-30": lambda image, generator: _compress(image, 30),
    "resize-0.7": lambda image, generator: _save(_resize(image, 0.7)),
    "resize-0.4": lambda image, generator: _save(_resize(image, 0.4)),
    "crop-0.95": lambda image, generator: _save(_crop(image, 0.95, generator)),
    "crop-0.8": lambda image, generator: _save(_crop(image, 0.8, generator)),
    "colour-0.1": lambda image, generator: _save(_recolour(image, 0.1, generator)),
    "colour-0.4": lambda image, generator: _save(_recolour(image, 0.4, generator)),
    "grey": lambda image, generator: _save(image.convert("L")),
    "all-mild": _change_a_little,
}


class Original(NamedTuple):
    """A sample to copy, and where it is in its shard, in bytes; `image` is the member that --image
    named, or empty."""

    sample_id: int
    url: str
    offset: int
    length: int
    image: str


@dataclass(frozen=True)
class EmbedCopies:
    """The task: vectors of a copy by each distortion of some originals, float16 [n, kinds, dim].

    What is drawn at random depends on the sample's id alone. Nothing is written, because copies
    without loss take many times the space of the originals. Raises CurateError where an image
    cannot be read.
    """

    encoder: EncoderPlan

    def __call__(self, originals: list[Original]) -> np.ndarray:
        forward = load_forward(self.encoder)
        vectors = []
        for original in originals:
            image = _read_image(original)
            generator = np.random.default_rng(original.sample_id)
            copies = [
                decode_image(distort(image, generator), self.encoder.preprocessing).pixels
                for distort in DISTORTIONS.values()
            ]
            with np.errstate(over="ignore"):
                vectors.append(forward(np.stack(copies)).astype(np.float16))
            report_progress(1)
        return np.stack(vectors)


def _read_image(original: Original) -> Image.Image:
    _, url, offset, length, image = original
    data = find_image(read_sample(url, offset, length), url, offset, image)
    try:
        return decode_rgb(data)
    except ImageDecodeError as error:
        raise CurateError(f"'{url}' has changed since it was embedded: {error}") from error
