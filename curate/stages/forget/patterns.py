"""Stretches of bytes that must not be found any more, as numbers that say nothing of the bytes.

A pattern is the value of a polynomial over 32 bytes, modulo 2^64. Those of every position of a file
are computed in a few passes, so any file can be searched without the bytes that are looked for.
"""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

WIDTH = 32  # bytes
_STEPS = 5  # doublings from one byte to WIDTH
_BASE = 0x9E3779B97F4A7C15  # odd, so that no byte is lost
_CHUNK = 4 << 20  # bytes
_LEAST_VARIETY = 12  # different bytes: what is mostly zeros is found everywhere


def make_patterns(data: bytes, count: int = 3) -> list[int]:
    """Patterns of up to `count` stretches of the data; fewer where it is short or uniform."""
    if len(data) < WIDTH:
        return []
    values = _evaluate(np.frombuffer(data, np.uint8))
    # From the second half: files of one kind begin with the same headers and tables.
    starts = np.linspace(len(data) // 2, len(data) - WIDTH, 4 * count).astype(int).tolist()
    starts = [start for start in starts if 0 <= start <= len(data) - WIDTH]
    varied = [start for start in starts if len(set(data[start : start + WIDTH])) >= _LEAST_VARIETY]
    return [int(values[start]) for start in varied[: 4 * count : 4]]


def find_patterns(file: BinaryIO, patterns: np.ndarray) -> set[int]:
    """Which of the patterns, uint64 [k], a file holds. Raises OSError."""
    found: set[int] = set()
    is_candidate = np.zeros(1 << 16, bool)  # by the upper bits: one look instead of a search
    is_candidate[patterns >> np.uint64(48)] = True
    for chunk in _iterate_chunks(file):
        values = _evaluate(np.frombuffer(chunk, np.uint8))
        values = values[is_candidate[values >> np.uint64(48)]]
        found.update(values[np.isin(values, patterns)].tolist())
    return found


def _iterate_chunks(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces that overlap, so that each stretch is whole in one of them."""
    rest = b""
    while data := file.read(_CHUNK):
        chunk = rest + data
        rest = chunk[-(WIDTH - 1) :]
        if len(chunk) >= WIDTH:
            yield chunk


def _evaluate(data: np.ndarray) -> np.ndarray:
    """The value of the stretch that begins at each position: uint8 [n] -> uint64 [n - 31]."""
    values, factor, length = data.astype(np.uint64), _BASE, 1
    with np.errstate(over="ignore"):
        for _ in range(_STEPS):
            values = values[:-length] * np.uint64(factor) + values[length:]
            factor, length = factor * factor & 0xFFFFFFFFFFFFFFFF, 2 * length
    return values
