"""Memory that a process shares with the children that it starts."""

import math
import mmap
import os
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import numpy as np


class SharedMemory:
    """Bytes, zero at first, that a child sees too if it is started with them as an argument.

    They have no name, so nothing is left of them when the last process has ended. Unlike POSIX
    shared memory they do not depend on the size of /dev/shm, which is 64 MB in many containers.
    """

    def __init__(self, num_bytes: int, descriptor: int | None = None) -> None:
        self.num_bytes = num_bytes
        if descriptor is None:
            descriptor = os.memfd_create("curate")
            os.ftruncate(descriptor, num_bytes)
        self._descriptor = descriptor
        self._bytes = mmap.mmap(descriptor, num_bytes)

    def array(self, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> np.ndarray:
        """A part of the memory, from the byte `offset` on, as an array that can be written."""
        values = np.frombuffer(self._bytes, dtype, math.prod(shape), offset)
        return values.reshape(shape)

    def close(self) -> None:
        """Give up the file; the memory stays until the last array on it is gone."""
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Callable[..., "SharedMemory"], tuple[int, Any]]:
        return _attach, (self.num_bytes, reduction.DupFd(self._descriptor))


def _attach(num_bytes: int, descriptor: Any) -> SharedMemory:
    return SharedMemory(num_bytes, descriptor.detach())
