"""Fingerprints of whole shards, by which a shard is known again: XXH3 with 128 bits, which costs little beside reading.

They find accidents, not malice: whoever may change the shards can make others of the same fingerprint.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from curate.storage import opened

_PREFIX = "xxh3:"


class Fingerprint:
    """Fed with bytes; `text` says what they are. Of the same kind as the text `like`, which in old catalogs is a SHA-256."""

    def __init__(self, like: str | None = None) -> None:
        old = like and not like.startswith(_PREFIX)
        self._prefix = "" if old else _PREFIX
        self._hash: Any = hashlib.sha256() if old else xxhash.xxh3_128()
        self.update: Callable[[bytes | memoryview], None] = self._hash.update

    @property
    def text(self) -> str:
        return self._prefix + str(self._hash.hexdigest())

    def of(self, stream: BinaryIO) -> str:
        """The text for everything that is left in a stream."""
        while data := stream.read(1 << 20):
            self.update(data)
        return self.text


def of_file(path: Path) -> str:
    """The text for a file. Raises OSError."""
    with opened(path) as file:
        return Fingerprint().of(file)
