"""Arrays in files that are mapped into memory."""

import errno
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def create_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """A new .npy file, mapped for writing. Raises OSError where the disk has no room for it.

    All of it is allocated first: on a full disk, writing to a page that has no block yet would end
    the process by SIGBUS, without a word.
    """
    array: np.ndarray = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            # Some file systems cannot allocate, those that compress for example.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise OSError(error.errno, error.strerror, str(path)) from error
    return array
