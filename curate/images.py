"""From image bytes to the pixels an encoder wants. The preprocessing is data, so that it can be stored and compared."""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

KINDS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
# Pillow opens more, and some by running other programs (EPS by Ghostscript): images come from strangers.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_SLIVER = 32  # how many times the shorter edge the longer one may be
_FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
            "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """How a model was taught to see: resize, crop to `size`, then (x/255 − mean)/std, channels in RGB order.

    resize "shortest": the shorter edge becomes `resize_to`; "longest": the longer one does, and the
    rest is filled; "squash": both edges do, whatever the shape. Lengths in pixels.
    """

    size: int
    resize_to: int
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fill: tuple[int, int, int] = (0, 0, 0)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, 3, size, size]."""
        scale = np.float32(1 / 255) / np.asarray(self.std, np.float32)
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray((pixels * scale - shift).transpose(0, 3, 1, 2))


class Decoded(NamedTuple):
    """`pixels` uint8 [size, size, 3]; width and height are those of the original."""

    pixels: np.ndarray
    width: int
    height: int


def image_kind(members: Iterable[str]) -> str | None:
    """The member that is the image: the first `KEY.jpg`, else the first `KEY.….jpg`; any known image kind."""
    members = list(members)
    plain = [kind for kind in members if kind in KINDS]
    return next(iter(plain + [kind for kind in members if kind.rsplit(".", 1)[-1] in KINDS]), None)


class ImageError(Exception):
    """The bytes are no image that can be used; the text says why."""


def decode(data: bytes, preprocessing: Preprocessing) -> Decoded:
    """Decode, turn to RGB, resize and crop. Raises ImageError.

    The first frame of an animation counts. EXIF rotation is not applied and transparency is
    dropped, as the transforms of open_clip and timm do: the models have learned it so.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                rgb = to_rgb(image)
        return Decoded(np.asarray(_fit(rgb, preprocessing)), *rgb.size)
    except UnidentifiedImageError as error:
        raise ImageError("no image of a format that is read here") from error
    # The boundary to decoders, which raise anything at all on damaged bytes: it becomes the sample's recorded failure.
    except Exception as error:
        raise ImageError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB; 16-bit and 32-bit greys are scaled, where Pillow would clip them to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _fit(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Resize and crop with the same rounding as torchvision's Resize and CenterCrop on a PIL image."""
    if how.resize == "shortest":
        image = _middle(image)
    new = _resized(image.size, how)
    if new != image.size:
        image = image.resize(new, _FILTERS[how.interpolation])
    return _center(image, how)


def _middle(image: Image.Image) -> Image.Image:
    """A sliver of 1 × 20,000 pixels would become one of 224 × 4,480,000: its far ends, which no crop keeps, go first."""
    longest = _SLIVER * min(image.size)
    width, height = (min(length, longest) for length in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _resized(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """The size that the whole image would be resized to: (width, height)."""
    width, height = size
    if how.resize == "squash":
        return how.resize_to, how.resize_to
    if how.resize == "longest":
        ratio = max(size) / how.resize_to
        return max(round(width / ratio), 1), max(round(height / ratio), 1)
    if width <= height:
        return how.resize_to, int(how.resize_to * height / width)
    return int(how.resize_to * width / height), how.resize_to


def _center(image: Image.Image, how: Preprocessing) -> Image.Image:
    size, (width, height) = how.size, image.size
    if width < size or height < size:
        left, top = max((size - width) // 2, 0), max((size - height) // 2, 0)
        padded = Image.new("RGB", (max(width, size), max(height, size)), how.fill)
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
