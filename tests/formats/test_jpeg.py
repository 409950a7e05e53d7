"""JPEGs are decoded by simplejpeg where it gives the pixels that Pillow gives, else by Pillow."""

import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from curate.formats import images
from curate.formats.images import ImageDecodeError, Preprocessing, decode_image, pixels_checksum

SIZE = (213, 187)  # odd, so that blocks of colours are cut


@pytest.fixture
def by_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every image that is opened, whether simplejpeg gave its pixels."""
    used: list[bool] = []
    decode_jpeg = images._decode_jpeg

    def note(*arguments: object) -> np.ndarray | None:
        rgbx = decode_jpeg(*arguments)  # type: ignore[arg-type]
        used.append(rgbx is not None)
        return rgbx

    monkeypatch.setattr(images, "_decode_jpeg", note)
    return used


def photo(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth colours with some noise."""
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (9, 8, 3), np.uint8)).resize(size)
    noise = random.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray(np.clip(noise + smooth, 0, 255).astype(np.uint8)).convert(mode)


def encode(mode: str = "RGB", size: tuple[int, int] = SIZE, **options: object) -> bytes:
    file = io.BytesIO()
    photo(mode, size).save(file, "JPEG", **options)
    return file.getvalue()


def without_end(data: bytes) -> bytes:
    return data[:-2]


def with_zeros_inside(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :]


def with_bytes_between_segments(data: bytes) -> bytes:
    return data[:2] + b"\x00\x01\x02" + data[2:]


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pixels_or_error(data: bytes, preprocessing: Preprocessing) -> tuple:
    try:
        decoded = decode_image(data, preprocessing, with_checksum=True)
    except ImageDecodeError as error:
        return (str(error),)
    return decoded.pixels.tobytes(), decoded.width, decoded.height, decoded.checksum


ORDINARY = {
    "4:4:4": encode(subsampling=0, quality=95),
    "4:2:2": encode(subsampling=1),
    "4:2:0": encode(subsampling=2, quality=60),
    "progressive": encode(progressive=True),
    "restart markers": encode(restart_marker_blocks=7),
    "optimised tables": encode(optimize=True, quality=30),
    "turned by EXIF": encode(exif=exif_of(6)),
    "a long one": encode(size=(20, 3000)),
    "bytes after the end": encode() + b"more",
    "zeros inside": with_zeros_inside(encode()),  # which are a colour, too
}
ODD = {
    "grey": encode("L"),
    "CMYK": encode("CMYK"),
    "colours as RGB": encode(keep_rgb=True),
    "small": encode(size=(100, 100)),
    "truncated": encode()[:-500],
    "truncated and progressive": encode(progressive=True)[:-500],
    "without its end": without_end(encode()),
    "bytes between segments": with_bytes_between_segments(encode()),
    "header alone": encode()[:620],
}


@pytest.mark.parametrize("decode", ["fast", "exact"])
@pytest.mark.parametrize("name", [*ORDINARY, *ODD])
def test_pixels_checksums_and_errors_are_those_that_pillow_gives(
    name, decode, by_simplejpeg, monkeypatch
):
    data = (ORDINARY | ODD)[name]
    preprocessing = Preprocessing(48, 64, decode=decode)
    ours = pixels_or_error(data, preprocessing)
    assert any(by_simplejpeg) == (name in ORDINARY)
    monkeypatch.setattr(images, "_decode_jpeg", lambda data, image: None)
    assert pixels_or_error(data, preprocessing) == ours


def test_photos_have_the_pixels_that_pillow_gives(data, by_simplejpeg):
    with tarfile.open(data / "clothing" / "clothing-test-000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:40]
        photos = [tar.extractfile(member).read() for member in members]
    for content in photos:
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        rgbx = images._open_image(content, Preprocessing(1, 1))
        assert isinstance(rgbx, np.ndarray)
        assert np.array_equal(rgbx[..., :3], expected)
        assert (rgbx[..., 3] == 255).all(), "which the checksum of the pixels covers"
    assert all(by_simplejpeg)


def test_the_checksum_of_an_image_beyond_one_block_of_memory_is_the_same(monkeypatch):
    data = encode(size=(2500, 1800), quality=20)
    ours = pixels_checksum(data)
    monkeypatch.setattr(images, "_decode_jpeg", lambda data, image: None)
    assert pixels_checksum(data) == ours


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("as_list", [True, False])
def test_normalised_images_are_what_the_formula_says_bit_for_bit(channels, as_list):
    preprocessing = Preprocessing(9, 9, mean=images.IMAGENET_MEAN, std=images.IMAGENET_STD)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 9, channels), np.uint8)
    mean, std = (
        np.asarray(values, np.float32)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    planar = np.ascontiguousarray(pixels[..., :3].transpose(0, 3, 1, 2))
    expected = planar * (np.float32(1 / 255) / std) - mean / std
    give: Callable = list if as_list else np.asarray
    normalized = preprocessing.normalize(give(pixels))
    assert normalized.dtype == np.float32
    assert np.array_equal(normalized, expected)
