"""JPEG to 224 × 224 pixels: against open_clip's own transform, and against decoding alone."""

import io
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import Row, time_variants
from PIL import Image

from curate.formats.images import Preprocessing, decode_image

DATA = Path(os.environ.get("CURATE_DATA", "../shared/data"))
PREPROCESSING = Preprocessing(224, 224, decode="fast")


def load_photos(count: int, enlarge: float = 1.0) -> list[bytes]:
    """The first photos of clothing-test as JPEG, of about 400 × 533 pixels, or enlarged."""
    photos: list[bytes] = []
    with tarfile.open(DATA / "clothing" / "clothing-test-000.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(photos) < count:
                photos.append(tar.extractfile(member).read())
    return photos if enlarge == 1 else [enlarge_photo(photo, enlarge) for photo in photos]


def enlarge_photo(data: bytes, factor: float) -> bytes:
    file, image = io.BytesIO(), Image.open(io.BytesIO(data))
    size = (round(image.width * factor), round(image.height * factor))
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()


def process_each(photos: list[bytes], process: Callable[[bytes], object]) -> None:
    """One after the other; results are dropped, lest fresh memory for each is timed as well."""
    for photo in photos:
        process(photo)


def decode_by_curate(photo: bytes) -> object:
    return PREPROCESSING.normalize(decode_image(photo, PREPROCESSING).pixels[None])


def decode_only(photo: bytes) -> object:
    return Image.open(io.BytesIO(photo)).load()


def measure() -> list[Row]:
    import open_clip

    torch.set_num_threads(1)
    transform = open_clip.image_transform(224, is_train=False)

    def decode_by_open_clip(photo: bytes) -> object:
        return transform(Image.open(io.BytesIO(photo)))

    cases = (
        ("400 × 533", load_photos(100), 1 / 0.35),
        ("600 × 800", load_photos(60, enlarge=1.5), 1 / 0.5),
    )
    rows = []
    for size, photos, target in cases:
        variants = {
            "ours": partial(process_each, photos, decode_by_curate),
            "peer": partial(process_each, photos, decode_by_open_clip),
            "limit": partial(process_each, photos, decode_only),
        }
        rows.append(
            Row(
                f"decode, resize, crop, {size}",
                **time_variants(variants, cpu_time=True),
                peer_name="open_clip's transform",
                least_of_peer=round(target, 2),
            )
        )
    return rows
