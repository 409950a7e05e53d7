import io

import numpy as np
import pytest
from PIL import Image

from curate.formats.images import ImageDecodeError, Preprocessing, decode_image

PLAIN = Preprocessing(8, 8)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def solid(colour=(200, 100, 50), size=(16, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def transparent() -> Image.Image:
    image = solid().convert("RGBA")
    image.putalpha(10)
    return image


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(solid()), (200, 100, 50)),
        (encode(solid(), "JPEG", quality=95), (200, 100, 50)),
        (encode(solid(), "WEBP", lossless=True), (200, 100, 50)),
        (encode(solid().convert("P")), None),
        (encode(transparent()), (200, 100, 50)),
        (encode(solid().convert("CMYK"), "JPEG", quality=95), (200, 100, 50)),
        (encode(solid().convert("L")), (124, 124, 124)),
        (encode(solid().convert("1")), None),
        (encode(solid().convert("LA")), (124, 124, 124)),
        (encode(Image.fromarray(np.full((8, 16), 40_000, np.uint16))), (156, 156, 156)),
    ],
)
def test_every_mode_becomes_the_colours_it_stands_for(data, colour):
    decoded = decode_image(data, PLAIN)
    assert (decoded.pixels.shape, decoded.pixels.dtype) == ((8, 8, 3), np.uint8)
    assert (decoded.width, decoded.height) == (16, 8)
    if colour:
        assert np.abs(decoded.pixels.astype(int) - colour).max() <= 4


def test_exif_rotation_is_left_alone_as_in_the_encoders_own_transforms():
    image = Image.fromarray(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 16, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 6
    with_exif, without = (
        decode_image(encode(image, "JPEG", quality=95, **options), Preprocessing(16, 16)).pixels
        for options in ({"exif": exif}, {})
    )
    assert np.array_equal(with_exif, without)


def test_the_first_frame_of_an_animation_counts():
    frames = [solid((255, 0, 0)), solid((0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, PLAIN).pixels.reshape(-1, 3).mean(axis=0).tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no image of a format"),
        (b"no image", "no image of a format"),
        (encode(solid(size=(64, 64)), "JPEG")[:-200], "OSError: image file is truncated|Truncated"),
    ],
)
def test_broken_bytes_give_a_reason(data, reason):
    with pytest.raises(ImageDecodeError, match=reason):
        decode_image(data, PLAIN)


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours, as in photos."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "size",
    [(300, 400), (400, 300), (256, 256), (90, 5000), (3000, 2000), (64, 64), (1, 1), (1, 90_000)],
)
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_fast_decoding_gives_nearly_the_same_pixels(mode, size, resize, interpolation):
    data = encode(photo(size).convert(mode), "TIFF")
    exact = decode_image(data, Preprocessing(48, 64, resize, interpolation))
    fast = decode_image(data, Preprocessing(48, 64, resize, interpolation, decode="fast"))
    assert fast[1:3] == exact[1:3] == size
    assert fast.pixels.shape == exact.pixels.shape == (48, 48, 3)
    assert np.abs(fast.pixels.astype(int) - exact.pixels).max() <= 2


def test_fast_decoding_resizes_by_torch_and_small_images_by_pillow(monkeypatch):
    resized_by_pillow = []

    def crop_instead(image: Image.Image, size: tuple[int, int], *options: object) -> Image.Image:
        resized_by_pillow.append(image.size)
        return image.crop((0, 0, *size))

    monkeypatch.setattr(Image.Image, "resize", crop_instead)
    for size in ((300, 400), (100, 100)):
        data = encode(Image.new("RGB", size), "JPEG")
        decode_image(data, Preprocessing(48, 64, decode="fast"))
    assert resized_by_pillow == [(100, 100)]


def test_no_other_program_is_run_to_read_an_image(monkeypatch, tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageDecodeError, match="no image of a format"):
        decode_image(eps, PLAIN)
    assert not (tmp_path / "ran").exists()


def test_an_image_one_pixel_wide_takes_little_memory(monkeypatch):
    areas, resize = [], Image.Image.resize

    def record_area(image: Image.Image, size: tuple[int, int], *options: object) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(image, size, *options)

    monkeypatch.setattr(Image.Image, "resize", record_area)
    for size in ((1, 20_000), (20_000, 1)):
        decoded = decode_image(encode(solid(size=size)), Preprocessing(224, 256))
        assert decoded.pixels.shape == (224, 224, 3)
    assert len(areas) == 2
    assert max(areas) <= 32 * 256 * 256


def test_a_decompression_bomb_is_refused():
    with pytest.raises(ImageDecodeError, match="DecompressionBomb"):
        decode_image(encode(Image.new("1", (20_000, 10_000))), PLAIN)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (37, 23)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_an_image_of_any_shape_gets_the_size_asked_for(size, resize):
    decoded = decode_image(encode(solid(size=size)), Preprocessing(8, 9, resize))
    assert decoded.pixels.shape == (8, 8, 3)
