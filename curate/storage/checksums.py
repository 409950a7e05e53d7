"""Checksums of whole files: XXH3 with 128 bits, which costs little compared to reading.

They find accidents, not malice: whoever may change the shards can make others of the same checksum.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from curate.storage.files import open_binary, wrap_remote_errors

_PREFIX = "xxh3:"


class Checksum:
    """Fed with bytes; `text` is their checksum.

    It is of the same kind as the checksum `like`, which in old catalogs is a SHA-256.
    """

    def __init__(self, like: str | None = None) -> None:
        import xxhash  # here, because machines that only train may lack it

        is_sha256 = bool(like) and not str(like).startswith(_PREFIX)
        self._prefix = "" if is_sha256 else _PREFIX
        self._hash: Any = hashlib.sha256() if is_sha256 else xxhash.xxh3_128()
        self.update: Callable[[bytes | memoryview], None] = self._hash.update

    @property
    def text(self) -> str:
        return self._prefix + str(self._hash.hexdigest())

    def read(self, stream: BinaryIO) -> str:
        """Take in the rest of a stream, and return `text`."""
        while data := stream.read(1 << 20):
            self.update(data)
        return self.text


def bytes_checksum(data: bytes | memoryview) -> int:
    """XXH3 with 64 bits, for what is compared only with others of its own size.

    Among a billion different images of one size, two have the same with a probability of 3%.
    """
    import xxhash

    return xxhash.xxh3_64_intdigest(data)


def file_checksum(location: str | Path, like: str | None = None) -> str:
    """The checksum of a file, of the same kind as `like`. Raises OSError."""
    with open_binary(str(location), sequential=True) as file, wrap_remote_errors():
        return Checksum(like).read(file)
