import io

import numpy as np
import pytest
from PIL import Image

from curate.images import ImageError, Preprocessing, decode

PLAIN = Preprocessing(8, 8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def solid(colour=(200, 100, 50), size=(16, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def alpha() -> Image.Image:
    image = solid().convert("RGBA")
    image.putalpha(10)
    return image


@pytest.mark.parametrize(("data", "wanted"), [
    (encoded(solid()), (200, 100, 50)),
    (encoded(solid(), "JPEG", quality=95), (200, 100, 50)),
    (encoded(solid(), "WEBP", lossless=True), (200, 100, 50)),
    (encoded(solid().convert("P")), None),
    (encoded(alpha()), (200, 100, 50)),
    (encoded(solid().convert("CMYK"), "JPEG", quality=95), (200, 100, 50)),
    (encoded(solid().convert("L")), (124, 124, 124)),
    (encoded(solid().convert("1")), None),
    (encoded(solid().convert("LA")), (124, 124, 124)),
    (encoded(Image.fromarray(np.full((8, 16), 40_000, np.uint16))), (156, 156, 156)),
])  # fmt: skip
def test_every_mode_becomes_the_colours_it_stands_for(data, wanted):
    decoded = decode(data, PLAIN)
    assert (decoded.pixels.shape, decoded.pixels.dtype, decoded.width, decoded.height) == ((8, 8, 3), np.uint8, 16, 8)
    if wanted:
        assert np.abs(decoded.pixels.astype(int) - wanted).max() <= 4


def test_exif_rotation_is_left_alone_as_in_the_encoders_own_transforms():
    image = Image.fromarray(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 16, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(image, "JPEG", exif=exif, quality=95), Preprocessing(16, 16)).pixels
    assert np.array_equal(turned, decode(encoded(image, "JPEG", quality=95), Preprocessing(16, 16)).pixels)


def test_the_first_frame_of_an_animation_counts():
    frames = [solid((255, 0, 0)), solid((0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, PLAIN).pixels.reshape(-1, 3).mean(axis=0).tolist() == [255, 0, 0]


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "no image of a format"), (b"no image", "no image of a format"),
    (encoded(solid(size=(64, 64)), "JPEG")[:-200], "OSError: image file is truncated|Truncated"),
])  # fmt: skip
def test_broken_bytes_give_a_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data, PLAIN)


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours, as in photos."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (90, 5000), (3000, 2000), (64, 64), (1, 1), (1, 90_000)])
@pytest.mark.parametrize("how", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_fast_decoding_gives_nearly_the_same_pixels(mode, size, how, interpolation):
    data = encoded(photo(size).convert(mode), "TIFF")
    exact = decode(data, Preprocessing(48, 64, how, interpolation))
    fast = decode(data, Preprocessing(48, 64, how, interpolation, decode="fast"))
    assert fast[1:] == exact[1:] == size
    assert fast.pixels.shape == exact.pixels.shape == (48, 48, 3)
    assert np.abs(fast.pixels.astype(int) - exact.pixels).max() <= 2


def test_fast_decoding_is_another_way_and_is_for_large_images_only(monkeypatch):
    ways = []
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *how: ways.append(image.size) or image.crop((0, 0, *size)))
    for size in ((300, 400), (100, 100)):
        decode(encoded(Image.new("RGB", size), "JPEG"), Preprocessing(48, 64, decode="fast"))
    assert ways == [(100, 100)]


def test_no_other_program_is_run_to_read_an_image(monkeypatch, tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match="no image of a format"):
        decode(eps, PLAIN)
    assert not (tmp_path / "ran").exists()


def test_a_sliver_takes_no_memory(monkeypatch):
    areas, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *how: areas.append(size[0] * size[1]) or resize(image, size, *how)
    )
    for size in ((1, 20_000), (20_000, 1)):
        assert decode(encoded(solid(size=size)), Preprocessing(224, 256)).pixels.shape == (224, 224, 3)
    assert len(areas) == 2
    assert max(areas) <= 32 * 256 * 256


def test_a_decompression_bomb_is_refused():
    with pytest.raises(ImageError, match="DecompressionBomb"):
        decode(encoded(Image.new("1", (20_000, 10_000))), PLAIN)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (37, 23)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_any_shape_gives_the_wanted_size(size, resize):
    assert decode(encoded(solid(size=size)), Preprocessing(8, 9, resize)).pixels.shape == (8, 8, 3)
