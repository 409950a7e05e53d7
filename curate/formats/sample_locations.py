"""Random access to images, by where the catalog says that each sample lies in its shard."""

import io
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from curate.errors import CurateError
from curate.formats.images import (
    ImageDecodeError,
    Preprocessing,
    decode_image,
    find_image_member,
)
from curate.formats.samples import CorruptShardError, iterate_samples
from curate.formats.tar import BLOCK, TarReader
from curate.storage.files import read_range


class SampleLocations(NamedTuple):
    """Where samples lie: the shards, and for each sample the index of its shard, its offset and
    its length in bytes: int64 [n] each."""

    urls: list[str]
    url_indices: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez(path, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                arrays["urls"].tolist(), arrays["url_indices"], arrays["offsets"], arrays["lengths"]
            )


def read_image(url: str, offset: int, length: int, preprocessing: Preprocessing) -> np.ndarray:
    """The image of the sample at an offset: uint8 [size, size, 3]. Raises CurateError."""
    try:
        sample = read_range(url, offset, length)
    except OSError as error:
        raise CurateError(
            f"'{url}' cannot be read ({error.strerror or error}): put the shard back"
        ) from error
    return decode_sample_image(sample, url, offset, preprocessing)


def decode_sample_image(
    sample: bytes, url: str, offset: int, preprocessing: Preprocessing
) -> np.ndarray:
    """The image in a sample's bytes, which were read at `offset` of `url`. Raises CurateError."""
    changed = f"'{url}' has changed since it was embedded"
    try:
        members = next(iterate_samples(TarReader(io.BytesIO(sample + bytes(2 * BLOCK))))).members
    except (CorruptShardError, StopIteration) as error:
        raise CurateError(f"{changed}: no sample at byte {offset:,}") from error
    extension = find_image_member(members)
    if extension is None:
        raise CurateError(f"{changed}: no image at byte {offset:,}")
    try:
        return decode_image(members[extension], preprocessing).pixels
    except ImageDecodeError as error:
        raise CurateError(f"{changed}: {error}") from error
