"""JPEG to 224 × 224 pixels: against open_clip's own transform, and against decoding alone."""

import io
import os
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import Row, timed
from PIL import Image

from curate import images
from curate.images import Preprocessing

DATA = Path(os.environ.get("CURATE_DATA", "../shared/data"))


def photos(most: int, enlarge: float = 1.0) -> list[bytes]:
    """The first photos of clothing-test, of about 400 × 533 pixels, or enlarged."""
    found: list[bytes] = []
    with tarfile.open(DATA / "clothing" / "clothing-test-000.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(found) < most:
                found.append(tar.extractfile(member).read())
    return found if enlarge == 1 else [enlarged(data, enlarge) for data in found]


def enlarged(data: bytes, factor: float) -> bytes:
    file, image = io.BytesIO(), Image.open(io.BytesIO(data))
    size = (round(image.width * factor), round(image.height * factor))
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()


def each(data: list[bytes], work: Callable[[bytes], object]) -> None:
    """One after the other, and nothing kept: fresh memory for every image would be timed as well."""
    for one in data:
        work(one)


def measure() -> list[Row]:
    import open_clip

    torch.set_num_threads(1)
    transform = open_clip.image_transform(224, is_train=False)
    how = Preprocessing(224, 224, decode="fast")
    rows = []
    for name, data, least in (("400 × 533", photos(100), 1 / 0.35), ("600 × 800", photos(60, 1.5), 1 / 0.5)):
        found = timed({
            "ours": partial(each, data, lambda one: how.normalize(images.decode(one, how).pixels[None])),
            "peer": partial(each, data, lambda one: transform(Image.open(io.BytesIO(one)))),
            "limit": partial(each, data, lambda one: Image.open(io.BytesIO(one)).load()),
        }, cpu=True)  # fmt: skip
        rows.append(
            Row(f"decode, resize, crop, {name}", **found, peer_name="open_clip's transform", least_of_peer=round(least, 2))
        )
    return rows
