"""Centroids of a clustering in a .npy file: float32 [k, dim]."""

import numpy as np

from curate.errors import CurateError
from curate.formats.numpy_files import READ_ERRORS
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum
from curate.storage.files import open_binary


def save_centroids(location: str, centroids: np.ndarray) -> str:
    """Write centroids in one step; returns the file's checksum."""
    with atomic_write(location) as temporary:
        with temporary.open("wb") as file:
            np.save(file, centroids)
        return file_checksum(temporary)


def load_centroids(location: str) -> np.ndarray:
    """Read what `save_centroids` wrote. Raises CurateError where it is missing or damaged."""
    try:
        with open_binary(location) as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except READ_ERRORS as error:
        raise CurateError(
            f"the centroids '{location}' are gone or damaged: "
            "remove them, and `curate cluster` makes them again"
        ) from error
