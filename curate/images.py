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
# Mean and standard deviation of ImageNet's pixels (He et al. 2016), which do for any photos; 1 is white.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SLIVER = 32  # how many times the shorter edge the longer one may be
_FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
            "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}  # fmt: skip
_TENSOR_FILTERS = ("bicubic", "bilinear")
_LARGE = 1 << 15  # pixels; below, Pillow is fast enough, and torch need not be imported


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
    decode: Literal["exact", "fast"] = "exact"  # resize by Pillow, as models mostly saw their images, or large ones by torch

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, 3, size, size]."""
        scale = np.float32(1 / 255) / np.asarray(self.std, np.float32)[:, None, None]
        shift = np.asarray(self.mean, np.float32)[:, None, None] / np.asarray(self.std, np.float32)[:, None, None]
        bytes_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # cheaper to turn round than floats
        images: np.ndarray = bytes_first * scale
        images -= shift
        return images


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
        return Decoded(_fit(rgb, preprocessing), *rgb.size)
    except UnidentifiedImageError as error:
        raise ImageError("no image of a format that is read here") from error
    # The boundary to decoders, which raise anything at all on damaged bytes: it becomes the sample's recorded failure.
    except Exception as error:
        raise ImageError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB; 16-bit and 32-bit greys are scaled, where Pillow would clip them to white."""
    if image.mode == "RGB":
        image.load()
        return image  # a copy would take as long as half of the decoding
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _fit(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """Resize and crop with the same rounding as torchvision's Resize and CenterCrop on a PIL image: uint8 [size, size, 3]."""
    if how.resize == "shortest" and _middle(image.size) != (0, 0, *image.size):
        image = image.crop(_middle(image.size))
    new = _resized(image.size, how)
    fast = how.decode == "fast" and how.interpolation in _TENSOR_FILTERS and image.width * image.height >= _LARGE
    if fast and new != image.size and min(new) >= how.size:
        (left, top), size = _corner(new, how.size), how.size
        return _resized_by_torch(image, new, how.interpolation)[top : top + size, left : left + size]
    if new != image.size:
        image = image.resize(new, _FILTERS[how.interpolation])
    return np.asarray(_center(image, how))


def _resized_by_torch(image: Image.Image, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """With antialiasing, as Pillow does, in a quarter of its time; the two differ by rounding only."""
    import pyarrow
    import torch

    try:  # Pillow's own memory, 4 bytes a pixel, where it lies in one piece: up to 4 million pixels
        pixels = torch.utils.dlpack.from_dlpack(pyarrow.array(image).values).view(image.height, image.width, 4)
    except ValueError:
        pixels = torch.from_numpy(np.array(image))
    resized = torch.nn.functional.interpolate(pixels.permute(2, 0, 1)[None], size[::-1], mode=interpolation, antialias=True)
    return np.asarray(resized[0].permute(1, 2, 0).numpy())[..., :3]


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) that counts.

    A sliver of 1 × 20,000 pixels would become one of 224 × 4,480,000: its far ends, which no crop keeps, go first.
    """
    longest = _SLIVER * min(size)
    width, height = (min(length, longest) for length in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


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
    left, top = _corner((width, height), size)
    return image.crop((left, top, left + size, top + size))


def _corner(size: tuple[int, int], crop: int) -> tuple[int, int]:
    """Left and top of the crop in the middle, rounded as torchvision does."""
    width, height = size
    return round((width - crop) / 2), round((height - crop) / 2)
