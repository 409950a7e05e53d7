"""Random access to images, by where the catalog says that each sample lies in its shard."""

import io
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from curate.errors import CurateError
from curate.formats.images import ImageDecodeError, Preprocessing, decode_image, read_image_size
from curate.formats.member_roles import MemberRoles
from curate.formats.samples import CorruptShardError, iterate_samples
from curate.formats.tar import BLOCK, TarReader
from curate.storage.files import read_range


class SampleLocations(NamedTuple):
    """Where samples lie: the shards, and for each sample the index of its shard, its offset and
    its length in bytes: int64 [n] each. `image` is the member that --image named, or empty."""

    urls: list[str]
    url_indices: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    image: str = ""

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez(path, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                arrays["urls"].tolist(),
                arrays["url_indices"],
                arrays["offsets"],
                arrays["lengths"],
                str(arrays["image"]),
            )


def read_image(
    url: str, offset: int, length: int, preprocessing: Preprocessing, image: str = ""
) -> np.ndarray:
    """The image of the sample at an offset: uint8 [size, size, 3]. Raises CurateError.

    `image` is the member that --image named, or empty.
    """
    sample = read_sample(url, offset, length)
    return decode_sample_image(sample, url, offset, preprocessing, image)


def read_sample(url: str, offset: int, length: int) -> bytes:
    """The bytes of the sample at an offset of a shard. Raises CurateError."""
    try:
        return read_range(url, offset, length)
    except OSError as error:
        raise CurateError(
            f"'{url}' cannot be read ({error.strerror or error}): put the shard back"
        ) from error


class WholeImage(NamedTuple):
    """`pixels` uint8 [h, w, 3]; width and height are those of the original."""

    pixels: np.ndarray
    width: int
    height: int


def read_whole_image(
    url: str, offset: int, length: int, image: str = "", max_edge: int = 2048
) -> WholeImage:
    """The image of the sample at an offset in its own pixels, or reduced to `max_edge`.

    Raises CurateError.
    """
    data = find_image(read_sample(url, offset, length), url, offset, image)
    try:
        width, height = read_image_size(data)
        edge = min(max(width, height), max_edge)
        square = decode_image(data, Preprocessing(edge, edge, resize="longest")).pixels
    except ImageDecodeError as error:
        raise CurateError(f"{_has_changed(url)}: {error}") from error
    # The preprocessing puts what is not square into the middle of a square.
    ratio = max(width, height) / edge
    shape = max(round(height / ratio), 1), max(round(width / ratio), 1)
    top, left = (round((edge - length) / 2) for length in shape)
    return WholeImage(square[top : top + shape[0], left : left + shape[1]], width, height)


def decode_sample_image(
    sample: bytes, url: str, offset: int, preprocessing: Preprocessing, image: str = ""
) -> np.ndarray:
    """The image in a sample's bytes, which were read at `offset` of `url`. Raises CurateError."""
    data = find_image(sample, url, offset, image)
    try:
        return decode_image(data, preprocessing).pixels
    except ImageDecodeError as error:
        raise CurateError(f"{_has_changed(url)}: {error}") from error


def find_image(sample: bytes, url: str, offset: int, image: str = "") -> bytes:
    """The image's file in a sample's bytes, read at `offset` of `url`. Raises CurateError."""
    try:
        members = next(iterate_samples(TarReader(io.BytesIO(sample + bytes(2 * BLOCK))))).members
    except (CorruptShardError, StopIteration) as error:
        raise CurateError(f"{_has_changed(url)}: no sample at byte {offset:,}") from error
    # All bytes are of one sample, so the rule for keys does not matter: where dots belong to the
    # key, the image's name is that of --image with a part of the key before it.
    extension = MemberRoles(image=image or None).choose_image(members).extension
    if extension is None:
        raise CurateError(f"{_has_changed(url)}: no image at byte {offset:,}")
    return members[extension]


def _has_changed(url: str) -> str:
    return f"'{url}' has changed since it was embedded"
