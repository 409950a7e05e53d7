"""From image bytes to the pixels an encoder wants.

The preprocessing is data, so that it can be stored and compared.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from PIL import Image, UnidentifiedImageError

from curate.storage.checksums import bytes_checksum

# Pillow opens more, and some by running other programs (EPS by Ghostscript): images come from
# strangers.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_EXTENSION_OF_FORMAT = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "PPM": "ppm",
    "TIFF": "tif",
}
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
_STRIP_PIXELS = 1 << 18  # of a large image, copied at a time
_MIN_TENSOR_PIXELS = 1 << 15  # below, Pillow is fast enough, and torch need not be imported
# What a grey value can be at most: 8, 12, 16, 24 or 32 bits, whatever the file's own type can hold.
_GREY_BITS = (8, 12, 16, 24, 32)
_DARKEST = 16  # 8-bit colours below come of 12 bits or fewer in a file of 16
# Pillow warns of broken EXIF and the like, once for each picture, on stderr.
warnings.filterwarnings("ignore", module=r"PIL\b")
_complaints = threading.local()


@dataclass(frozen=True)
class Preprocessing:
    """A model's own transform: resize, crop to `size`, (x/255 − mean)/std, channels in RGB order.

    resize "shortest": the shorter edge becomes `resize_to`; "longest": the longer one does, and the
    rest is filled; "squash": both edges do, whatever the shape. Lengths in pixels. decode "exact"
    resizes by Pillow, as most models saw their images; "fast" resizes large images by torch.
    convert: whether palettes, bitmaps, CMYK and transparency become RGB before they are resized, or
    after it, where Pillow resizes palettes and bitmaps without smoothing.
    """

    size: int
    resize_to: int
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fill: tuple[int, int, int] = (0, 0, 0)
    decode: Literal["exact", "fast"] = "exact"
    convert: Literal["before", "after"] = "before"

    def normalize(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """n images, uint8 [size, size, 3 or 4] -> float32 [n, 3, size, size].

        Of four channels, as decoders write pixels, the last is ignored.
        """
        std = np.asarray(self.std, np.float32)
        scales = np.float32(1 / 255) / std
        shifts = np.asarray(self.mean, np.float32) / std
        normalized = np.empty((len(images), 3, self.size, self.size), np.float32)
        # A plane at a time stays in the processor's cache.
        for image, planes in zip(images, normalized, strict=True):
            for channel, plane in enumerate(planes):
                np.multiply(image[..., channel], scales[channel], out=plane)
                plane -= shifts[channel]
        return normalized


class DecodedImage(NamedTuple):
    """`rgbx` uint8 [size, size, 4], of which the last channel has no meaning; the rest is of the
    original: its width, its height, and the checksum of its pixels where that was asked for."""

    rgbx: np.ndarray
    width: int
    height: int
    checksum: int | None

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [size, size, 3]: a view, not a copy, which would take as long as a tenth of the
        decoding."""
        return self.rgbx[..., :3]


class ImageDecodeError(Exception):
    """The bytes are no image that can be used; the text says why."""


def image_extension(data: bytes) -> str | None:
    """The usual extension of an image with these bytes, by its header; None for no image."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _EXTENSION_OF_FORMAT[str(image.format)]
    except Exception:  # the boundary to decoders, which raise anything
        return None


def read_image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header alone. Raises ImageDecodeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return image.size
    except UnidentifiedImageError as error:
        raise ImageDecodeError("no image of a format that is read here") from error
    except Exception as error:  # the boundary to decoders, as in `decode_image`
        raise ImageDecodeError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def decode_image(
    data: bytes, preprocessing: Preprocessing, *, with_checksum: bool = False
) -> DecodedImage:
    """Decode, convert to RGB, resize and crop. Raises ImageDecodeError.

    Of an animation the first frame counts. EXIF rotation is not applied and transparency is
    dropped, as the transforms of open_clip and timm do: models were trained that way.
    """
    with _explain_decode_errors():
        decoded = _open_image(data, preprocessing)
        checksum = _pixels_checksum(decoded) if with_checksum else None
        rgbx = _resize_and_crop(decoded, preprocessing)
        return DecodedImage(rgbx, *_size_of(decoded), checksum)


def pixels_checksum(data: bytes) -> int:
    """The checksum of an image's decoded RGB pixels, as `decode_image` gives it.

    Raises ImageDecodeError.
    """
    with _explain_decode_errors():
        return _pixels_checksum(_open_image(data, Preprocessing(1, 1)))


def decode_rgb(data: bytes) -> Image.Image:
    """The whole image in RGB, as `decode_image` reads it. Raises ImageDecodeError."""
    with _explain_decode_errors():
        decoded = _open_image(data, Preprocessing(1, 1))
        return _to_rgb(Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded)


@contextlib.contextmanager
def _explain_decode_errors() -> Iterator[None]:
    """Turn what decoders raise, which is anything on damaged bytes, into ImageDecodeError."""
    try:
        yield
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        raise ImageDecodeError("no image of a format that is read here") from error
    except Exception as error:
        raise ImageDecodeError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def _open_image(data: bytes, preprocessing: Preprocessing) -> "Image.Image | np.ndarray":
    """The decoded image: as RGBX, uint8 [height, width, 4], or what else Pillow made of it."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        num_pixels = image.width * image.height
        if num_pixels > (Image.MAX_IMAGE_PIXELS or num_pixels):
            raise ImageDecodeError(f"DecompressionBomb: an image of {num_pixels:,} pixels")
        rgbx = _decode_jpeg(data, image)
        return _load(image, preprocessing) if rgbx is None else rgbx


def _decode_jpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
    """The pixels of a large colour JPEG that Pillow has opened, in two thirds of Pillow's time.

    uint8 [height, width, 4], the last of them 255. None for other images, and for those of which
    the decoder has anything to say: Pillow decides whether they can be used.
    """
    is_colour_jpeg = image.format == "JPEG" and image.mode == "RGB"
    if not is_colour_jpeg or image.width * image.height < _MIN_TENSOR_PIXELS:
        return None
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or (width, height) != image.size:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGBA"))
    except ValueError:  # of damaged bytes, even where it could read on
        return None


def _size_of(decoded: "Image.Image | np.ndarray") -> tuple[int, int]:
    """Width and height."""
    if isinstance(decoded, np.ndarray):
        height, width, _ = decoded.shape
        return width, height
    return decoded.size


def _pixels_checksum(decoded: "Image.Image | np.ndarray") -> int:
    """Of the RGB pixels of an image as decoders hold them: four bytes each, the last of them 255.

    In the decoder's own memory: a copy without the fourth bytes takes four times as long.
    """
    import pyarrow

    if isinstance(decoded, np.ndarray):
        return bytes_checksum(decoded.reshape(-1).data)
    image = _to_rgb(decoded)
    try:
        return bytes_checksum(memoryview(pyarrow.array(image).values.buffers()[1]))
    except ValueError:  # more than about 4 million pixels, which are not in one block
        hasher = xxhash.xxh3_64()
        rows = max(_STRIP_PIXELS // image.width, 1)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            hasher.update(strip.tobytes("raw", "RGBX"))
        return hasher.intdigest()


@contextlib.contextmanager
def collect_complaints() -> Iterator[None]:
    """For the block, what Pillow warns of is kept for `take_complaint`."""

    def keep(message: Warning | str, *details: object, **options: object) -> None:
        _complaints.text = " ".join(str(message).split())

    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\b")
        warnings.showwarning = keep
        yield


def take_complaint() -> str | None:
    """What Pillow warned of in this thread since the last call, of an image that it could read."""
    text: str | None = getattr(_complaints, "text", None)
    _complaints.text = None
    return text


def _load(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The decoded image, as RGB unless it is to be resized in its own mode."""
    raw_mode = _raw_mode(image)
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_grey(image)
    if ";16" in raw_mode and image.mode in ("RGB", "RGBA", "LA") and _is_dark(image):
        raise ImageDecodeError(
            "colours of 16 bits that use 12 or fewer: its range is not known, scale them to 16"
        )
    # Of plain grey, both orders give the same.
    is_first = preprocessing.convert == "before" or image.mode == "L"
    return _to_rgb(image) if is_first else image


def _raw_mode(image: Image.Image) -> str:
    """How the file stores pixels, such as RGB;16B."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _is_dark(image: Image.Image) -> bool:
    extrema = image.getextrema()[: 1 if image.mode == "LA" else 3]
    return all(isinstance(bounds, tuple) and bounds[1] < _DARKEST for bounds in extrema)


def _scale_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floating point, as RGB; Pillow itself would clip it.

    The range is that of the fewest bits that hold the largest value; floating point goes up to 1,
    or is as whole numbers are. Raises ImageDecodeError for values that are in none of these ranges.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high >= 2 ** _GREY_BITS[-1]:
        raise ImageDecodeError(f"grey values from {low:g} to {high:g}: scale them to 8 or 16 bits")
    if image.mode == "F" and high <= 1:
        grey = np.rint(values * 255)
    else:
        bits = next(bits for bits in _GREY_BITS if high < 2**bits)
        grey = values.astype(np.int64) >> (bits - 8)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of 8 bits as RGB; transparency is dropped."""
    if image.mode == "RGB":
        return image  # a copy would take as long as half of the decoding
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resize_and_crop(
    decoded: "Image.Image | np.ndarray", preprocessing: Preprocessing
) -> np.ndarray:
    """uint8 [size, size, 4], rounded as torchvision's Resize and CenterCrop round on PIL images."""
    crop_size = preprocessing.size
    if preprocessing.resize == "shortest":
        box = _limit_aspect(_size_of(decoded))
        if box != (0, 0, *_size_of(decoded)):
            decoded = _crop(decoded, box)
    width, height = _size_of(decoded)
    size = _resized_size((width, height), preprocessing)
    use_tensor = (
        (isinstance(decoded, np.ndarray) or decoded.mode == "RGB")
        and preprocessing.decode == "fast"
        and preprocessing.interpolation in _TENSOR_FILTERS
        and width * height >= _MIN_TENSOR_PIXELS
    )
    if use_tensor and size != (width, height) and min(size) >= crop_size:
        left, top = _crop_corner(size, crop_size)
        rgbx = _resize_by_torch(decoded, size, preprocessing.interpolation)
        return rgbx[top : top + crop_size, left : left + crop_size]
    image = decoded
    if isinstance(image, np.ndarray):
        image = Image.frombytes("RGB", (width, height), image.tobytes(), "raw", "RGBX")
    if size != image.size:
        image = image.resize(size, _FILTERS[preprocessing.interpolation])
    cropped = _center_crop(_to_rgb(image), preprocessing)
    rgbx = np.frombuffer(cropped.tobytes("raw", "RGBX"), np.uint8)
    return rgbx.reshape(crop_size, crop_size, 4)


def _crop(
    decoded: "Image.Image | np.ndarray", box: tuple[int, int, int, int]
) -> "Image.Image | np.ndarray":
    if isinstance(decoded, np.ndarray):
        left, top, right, bottom = box
        return np.ascontiguousarray(decoded[top:bottom, left:right])
    return decoded.crop(box)


def _resize_by_torch(
    decoded: "Image.Image | np.ndarray", size: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Antialiased like Pillow, in a quarter of its time; the two differ by rounding only.

    uint8 [height, width, 4], the last of them 255.
    """
    import pyarrow
    import torch

    if isinstance(decoded, np.ndarray):
        pixels = torch.from_numpy(decoded)
    else:
        # Pillow's own memory, 4 bytes a pixel, if it is in one block: up to 4 million pixels.
        try:
            values = torch.utils.dlpack.from_dlpack(pyarrow.array(decoded).values)
            pixels = values.view(decoded.height, decoded.width, 4)
        except ValueError:
            content = bytearray(decoded.tobytes("raw", "RGBX"))
            pixels = torch.frombuffer(content, dtype=torch.uint8).view(
                decoded.height, decoded.width, 4
            )
    # In this order of views torch sees four channels side by side, and leaves them so. Otherwise it
    # takes them apart, and whoever copies the pixels puts them together again.
    resized = torch.nn.functional.interpolate(
        pixels[None].permute(0, 3, 1, 2), size[::-1], mode=interpolation, antialias=True
    )
    return np.asarray(resized[0].permute(1, 2, 0).numpy())


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
