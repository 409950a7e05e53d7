"""Greys of other ranges, palettes, bitmaps and broken EXIF, as other tools' users met them."""

import io
import json
import logging
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import load_vectors, rows
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.formats.images import ImageDecodeError, Preprocessing, decode_image
from curate.stages.embed.stage import embed, num_failures


def encode(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


def read_members(path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_greys_of_other_ranges_are_the_pictures_that_they_were(worlds, tmp_path):
    """Ten pictures in four codings: one vector for each picture."""
    worlds.greys_of_other_ranges(tmp_path / "corpus")
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "corpus"), encoder="pixels", workers=1)
    assert num_failures(catalog) == 0
    vectors = load_vectors(catalog).astype(float).reshape(10, 4, -1)
    assert np.ptp(vectors, axis=1).max() < 0.05  # one grey value is 0.016
    first = vectors[:, 0]
    distances = np.linalg.norm(first[:, None] - first[None], axis=2) + 99 * np.eye(10)
    assert distances.min() > 1


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
PLAIN = Preprocessing(16, 16)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GREY.astype(np.uint16), GREY),
        (GREY.astype(np.uint16) << 4, GREY),
        (GREY.astype(np.uint16) << 8, GREY),
        (GREY.astype(np.int32) << 23, GREY // 2),
        (GREY.astype(np.float32) / 255, GREY),
        (GREY.astype(np.float32), GREY),
        (GREY.astype(np.float32) * 256, GREY),
        (np.zeros((16, 16), np.uint16), GREY * 0),
    ],
)
def test_a_grey_is_scaled_by_the_range_that_holds_it(values, expected):
    pixels = decode_image(encode(Image.fromarray(values), "TIFF"), PLAIN).pixels
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32) - 128,
        np.where(GREY == 7, np.nan, GREY).astype(np.float32),
        GREY.astype(np.float32) * 1e9,
        GREY.astype(np.int32) - 1,
    ],
)
def test_a_grey_of_no_known_range_is_a_failure(values):
    with pytest.raises(ImageDecodeError, match="grey values from .* scale them"):
        decode_image(encode(Image.fromarray(values), "TIFF"), PLAIN)


def png_of_16_bit_colours(values: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_colours_of_16_bits_are_never_black_in_silence():
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    pixels = decode_image(png_of_16_bit_colours(colours << 8), PLAIN).pixels
    assert np.array_equal(pixels, colours)
    for bits in (0, 4):
        with pytest.raises(ImageDecodeError, match="12 or fewer"):
            decode_image(png_of_16_bit_colours(colours << bits), PLAIN)


def coloured(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_palettes_and_bitmaps_equal_open_clips_own_transform(worlds, tmp_path, decode):
    """Theirs resizes them before it turns to RGB."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(size=64), is_train=False)
    worlds.palettes_and_bitmaps(tmp_path)
    images = read_members(tmp_path / "0.tar")
    picture = coloured((300, 200))
    transparent = picture.copy()
    transparent.putalpha(coloured((300, 200)).convert("L"))
    images["rgba"] = encode(transparent)
    images["cmyk"] = encode(picture.convert("CMYK"), "TIFF")
    images["grey"] = encode(picture.convert("L"))
    for name, data in images.items():
        preprocessing = Preprocessing(64, 64, decode=decode, convert="after")
        pixels = decode_image(data, preprocessing).pixels
        normalize = transform.transforms[-1]
        expected = transform(Image.open(io.BytesIO(data))).numpy().transpose(1, 2, 0)
        expected = np.rint((expected * np.array(normalize.std) + np.array(normalize.mean)) * 255)
        tolerance = 1 if decode == "fast" and name in ("rgb.png", "grey") else 0
        assert np.abs(pixels - expected).max() <= tolerance, name


def test_other_encoders_turn_to_rgb_first_as_their_own_loaders_do(worlds, tmp_path):
    worlds.palettes_and_bitmaps(tmp_path)
    for name, data in read_members(tmp_path / "0.tar").items():
        image = (
            Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        )
        pixels = decode_image(data, Preprocessing(64, 64, resize="squash")).pixels
        assert np.array_equal(pixels, np.asarray(image)), name


def test_an_embedding_goes_on_as_it_was_begun(worlds, tmp_path):
    """One of an earlier version turned to RGB first, whatever its encoder does today."""
    worlds.plain(tmp_path / "corpus", 4)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "corpus" / "00000.tar"), encoder="pixels", workers=1)
    with catalog.writing() as connection:
        connection.execute(
            "update embeddings set preprocessing = "
            "json_merge_patch(preprocessing, '{\"convert\": null}')"
        )
    embed(catalog, str(tmp_path / "corpus"), encoder="pixels", workers=1)
    ((preprocessing,),) = rows(catalog, "select preprocessing from embeddings")
    assert "convert" not in json.loads(preprocessing)
    assert rows(catalog, "select count(*) from samples") == [(8,)]


def test_broken_exif_is_one_line_with_the_count(worlds, tmp_path, caplog, capfd):
    worlds.exif_cut_short(tmp_path / "corpus")
    worlds.exif_cut_short(tmp_path / "plain", 0)
    catalog = Catalog(tmp_path / "catalog")
    with caplog.at_level(logging.INFO, "curate"):
        embed(catalog, str(tmp_path / "corpus"), encoder="pixels", workers=1)
    lines = [record.getMessage() for record in caplog.records if "metadata" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("50 images have broken metadata and were used: ")
    assert "EXIF" in lines[0] or "Corrupt" in lines[0]
    assert capfd.readouterr().err.count("\n") <= 1
    assert num_failures(catalog) == 0


def test_broken_exif_prints_nothing_where_images_are_only_shown(worlds, tmp_path):
    worlds.exif_cut_short(tmp_path, 1)
    (data,) = read_members(tmp_path / "0.tar").values()
    command = "import sys; from curate.formats.images import *; "
    command += "decode_image(sys.stdin.buffer.read(), Preprocessing(8, 8))"
    run = subprocess.run([sys.executable, "-c", command], input=data, capture_output=True)
    assert (run.returncode, run.stderr) == (0, b"")
