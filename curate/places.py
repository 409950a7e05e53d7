"""Random access: the image of a sample, by where the catalog says that the sample lies in its shard."""

import io
from typing import NamedTuple

import numpy as np

from curate import images, shards
from curate.errors import CurateError
from curate.images import ImageError, Preprocessing
from curate.shards import DamagedShard
from curate.tar import BLOCK, TarReader


class Places(NamedTuple):
    """Where samples lie: shard urls, and for each sample the place of its url, its offset and length in bytes: int64 [n]."""

    urls: list[str]
    owners: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


def image_at(url: str, offset: int, length: int, how: Preprocessing) -> np.ndarray:
    """The image of the sample at so many bytes of a shard: uint8 [size, size, 3]. Raises CurateError."""
    try:
        return image_in(shards.read_range(url, offset, length), url, offset, how)
    except OSError as error:
        raise CurateError(f"'{url}' cannot be read ({error.strerror or error}): put the shard back") from error


def image_in(sample: bytes, url: str, offset: int, how: Preprocessing) -> np.ndarray:
    """The image in a sample's bytes, which come from there in that shard. Raises CurateError."""
    changed = f"'{url}' has changed since it was embedded"
    try:
        members = next(shards.samples(TarReader(io.BytesIO(sample + bytes(2 * BLOCK))))).members
    except (DamagedShard, StopIteration) as error:
        raise CurateError(f"{changed}: no sample at byte {offset:,}") from error
    kind = images.image_kind(members)
    if kind is None:
        raise CurateError(f"{changed}: no image at byte {offset:,}")
    try:
        return images.decode(members[kind], how).pixels
    except ImageError as error:
        raise CurateError(f"{changed}: {error}") from error
