"""From image bytes to the pixels an encoder wants.

The preprocessing is data, so that it can be stored and compared.
"""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
# Pillow opens more, and some by running other programs (EPS by Ghostscript): images come from
# strangers.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
# Mean and standard deviation of ImageNet's pixels (He et al. 2016), fit for any photos; 1 is white.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_ASPECT = 32  # longer images are cropped before they are resized
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TENSOR_FILTERS = ("bicubic", "bilinear")
_MIN_TENSOR_PIXELS = 1 << 15  # below, Pillow is fast enough, and torch need not be imported


@dataclass(frozen=True)
class Preprocessing:
    """A model's own transform: resize, crop to `size`, (x/255 − mean)/std, channels in RGB order.

    resize "shortest": the shorter edge becomes `resize_to`; "longest": the longer one does, and the
    rest is filled; "squash": both edges do, whatever the shape. Lengths in pixels. decode "exact"
    resizes by Pillow, as most models saw their images; "fast" resizes large images by torch.
    """

    size: int
    resize_to: int
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fill: tuple[int, int, int] = (0, 0, 0)
    decode: Literal["exact", "fast"] = "exact"

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, 3, size, size]."""
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        # Transposing bytes is cheaper than transposing floats.
        planar = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        images: np.ndarray = planar * (np.float32(1 / 255) / std)
        images -= mean / std
        return images


class DecodedImage(NamedTuple):
    """`pixels` uint8 [size, size, 3]; width and height are those of the original."""

    pixels: np.ndarray
    width: int
    height: int


class ImageDecodeError(Exception):
    """The bytes are no image that can be used; the text says why."""


def find_image_member(extensions: Iterable[str]) -> str | None:
    """The extension of the image: the first plain one (`jpg`), else the first that ends so."""
    extensions = list(extensions)
    plain = [extension for extension in extensions if extension in EXTENSIONS]
    compound = [extension for extension in extensions if extension.rsplit(".", 1)[-1] in EXTENSIONS]
    return next(iter(plain + compound), None)


def decode_image(data: bytes, preprocessing: Preprocessing) -> DecodedImage:
    """Decode, convert to RGB, resize and crop. Raises ImageDecodeError.

    Of an animation the first frame counts. EXIF rotation is not applied and transparency is
    dropped, as the transforms of open_clip and timm do: models were trained that way.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                rgb = to_rgb(image)
        return DecodedImage(_resize_and_crop(rgb, preprocessing), *rgb.size)
    except UnidentifiedImageError as error:
        raise ImageDecodeError("no image of a format that is read here") from error
    # The boundary to decoders, which raise anything on damaged bytes; the sample is recorded as
    # failed.
    except Exception as error:
        raise ImageDecodeError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB; 16-bit and 32-bit greys are scaled, where Pillow clips to white."""
    if image.mode == "RGB":
        image.load()
        return image  # a copy would take as long as half of the decoding
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 [size, size, 3], rounded as torchvision's Resize and CenterCrop round on PIL images."""
    crop_size = preprocessing.size
    if preprocessing.resize == "shortest":
        box = _limit_aspect(image.size)
        if box != (0, 0, *image.size):
            image = image.crop(box)
    size = _resized_size(image.size, preprocessing)
    use_tensor = (
        preprocessing.decode == "fast"
        and preprocessing.interpolation in _TENSOR_FILTERS
        and image.width * image.height >= _MIN_TENSOR_PIXELS
    )
    if use_tensor and size != image.size and min(size) >= crop_size:
        left, top = _crop_corner(size, crop_size)
        pixels = _resize_by_torch(image, size, preprocessing.interpolation)
        return pixels[top : top + crop_size, left : left + crop_size]
    if size != image.size:
        image = image.resize(size, _FILTERS[preprocessing.interpolation])
    return np.asarray(_center_crop(image, preprocessing))


def _resize_by_torch(image: Image.Image, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Antialiased like Pillow, in a quarter of its time; the two differ by rounding only."""
    import pyarrow
    import torch

    # Pillow's own memory, 4 bytes a pixel, if it is in one block: up to 4 million pixels.
    try:
        values = torch.utils.dlpack.from_dlpack(pyarrow.array(image).values)
        pixels = values.view(image.height, image.width, 4)
    except ValueError:
        pixels = torch.from_numpy(np.array(image))
    resized = torch.nn.functional.interpolate(
        pixels.permute(2, 0, 1)[None], size[::-1], mode=interpolation, antialias=True
    )
    return np.asarray(resized[0].permute(1, 2, 0).numpy())[..., :3]


def _limit_aspect(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The middle box (left, top, right, bottom) of an image that is too long.

    An image of 1 × 20,000 pixels would be resized to 224 × 4,480,000: its far ends, which no crop
    contains, are removed first.
    """
    longest = _MAX_ASPECT * min(size)
    width, height = (min(length, longest) for length in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """The size that the whole image is resized to: (width, height)."""
    width, height = size
    target = preprocessing.resize_to
    if preprocessing.resize == "squash":
        return target, target
    if preprocessing.resize == "longest":
        ratio = max(size) / target
        return max(round(width / ratio), 1), max(round(height / ratio), 1)
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def _center_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size, (width, height) = preprocessing.size, image.size
    if width < size or height < size:
        left, top = max((size - width) // 2, 0), max((size - height) // 2, 0)
        padded = Image.new("RGB", (max(width, size), max(height, size)), preprocessing.fill)
        padded.paste(image, (left, top))
        image = padded
    left, top = _crop_corner(image.size, size)
    return image.crop((left, top, left + size, top + size))


def _crop_corner(size: tuple[int, int], crop_size: int) -> tuple[int, int]:
    """Left and top of the crop in the middle, rounded as torchvision rounds."""
    width, height = size
    return round((width - crop_size) / 2), round((height - crop_size) / 2)
