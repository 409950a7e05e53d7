"""Read tar archives front to back, with the place of every byte: ustar, GNU long names, PAX.

Our own, because export and random access need to know where each member's headers begin,
and a fingerprint of the whole file comes for nothing while it streams past.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from curate.fingerprints import Fingerprint

BLOCK = 512
_EMPTY = bytes(BLOCK)
_LARGEST_SUM = BLOCK * 255
_REGULAR = b"0\x007"  # '0', NUL (before POSIX) and '7' (contiguous) are all plain files
_NO_DATA = b"123456"  # links, devices, folders, pipes: whatever size they claim, headers follow headers
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
# Headers that describe the next member are small; a larger one is damage or an attack.
_MAX_EXTENDED = 1 << 20
_CHUNK = 1 << 18  # bytes read at once: fewer cost system calls, more fall out of the processor's cache
_PIECE = 64 << 20  # a size is only a claim: memory is taken for what is really there


class Member(NamedTuple):
    """One regular file in a tar: `offset` is that of its first header, `length` runs to the next member's."""

    name: str
    offset: int
    length: int
    data: bytes


class TarError(Exception):
    """The archive cannot be read beyond this point; what was read before is good.

    `member` is the name of the file that was cut short, where it is known. `at_boundary`
    says that the damage lies behind a whole member, so that nothing known is incomplete.
    """

    def __init__(self, message: str, *, member: str | None = None, at_boundary: bool = False) -> None:
        super().__init__(message)
        self.member, self.at_boundary = member, at_boundary


class TarReader:
    """Iterate over the regular files of one tar stream; large ones that are not `wanted`, by their names, come without data.

    Afterwards `num_bytes` and `fingerprint` describe the whole file; a fingerprint `like` another is of the same kind.
    Raises TarError where the archive is cut short or damaged, OSError where the stream fails.
    """

    def __init__(
        self, stream: BinaryIO, like: str | None = None, wanted: Callable[[str], bool] = lambda name: True
    ) -> None:  # fmt: skip
        self._stream, self._wanted = stream, wanted
        self._hash = Fingerprint(like)
        self._chunk, self._at = b"", 0  # what was read, and how much of it was taken
        self._before = 0  # bytes before the chunk

    @property
    def num_bytes(self) -> int:
        """How many bytes were taken."""
        return self._before + self._at

    @property
    def fingerprint(self) -> str:
        return self._hash.text

    def __iter__(self) -> Iterator[Member]:
        start, described = 0, dict[str, str]()
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136])
            if kind in _REGULAR and not described:  # nearly all of them
                data = self._payload(size, plain := _name(header))
                stop = self._before + self._at
                yield Member(plain, start, stop - start, data)
                start = stop
                continue
            if kind in b"xgLK" and size > _MAX_EXTENDED:
                raise TarError(f"an extended header of {size:,} bytes at byte {self.num_bytes - BLOCK:,}")
            if kind in _NO_DATA:
                size = 0
            elif kind not in b"xgLK":
                size = int(described.get("size", size))
            if kind == b"S":
                self._skip_sparse_map(header)
            name = None if kind in b"xgLK" else described.get("path") or _name(header)
            data = self._payload(size, name)
            if kind == b"x":
                described |= _pax_records(data)
            elif kind == b"L":
                described["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif name is not None:
                if kind in _REGULAR and "sparse" not in described:
                    yield Member(name, start, self.num_bytes - start, data)
                described = {}
            if kind not in b"xLK":  # a described member begins at the headers that describe it
                start = self.num_bytes
        self._padding()

    def drain(self) -> None:
        """Read to the end without looking, so that `fingerprint` and `num_bytes` cover the whole file."""
        while self._read(_CHUNK):
            pass

    def _read(self, count: int) -> bytes:
        """The next bytes; fewer than `count` only at the end of the file."""
        at, stop = self._at, self._at + count
        if stop <= len(self._chunk):
            self._at = stop
            return self._chunk[at:stop]
        pieces, missing = [self._chunk[at:]], stop - len(self._chunk)
        while missing > 0:
            self._before += len(self._chunk)
            self._chunk = self._stream.read(max(missing, _CHUNK))
            self._hash.update(self._chunk)
            self._at = min(missing, len(self._chunk))
            pieces.append(self._chunk[: self._at])
            missing -= self._at
            if not self._chunk:
                break
        return b"".join(pieces)

    def _header(self) -> bytes | None:
        header = self._read(BLOCK)
        if header == _EMPTY:
            return None
        if len(header) == BLOCK and _checksum_holds(header):
            return header
        at = self.num_bytes - len(header)
        for magic, name in _COMPRESSED.items():
            if at == 0 and header.startswith(magic):
                raise TarError(f"a {name} file: samples need byte offsets in a plain tar, so unpack it first")
        if not header:
            problem = f"the file ends at byte {at:,} without an end-of-archive mark: it may be cut short"
            raise TarError(problem, at_boundary=True)
        if len(header) < BLOCK:
            raise TarError(f"the file is cut short in a header at byte {at:,}")
        raise TarError(f"not a tar header at byte {at:,} (its checksum does not hold)")

    def _payload(self, size: int, name: str | None) -> bytes:
        padded, here = -(-size // BLOCK) * BLOCK, self._at
        if here + padded <= len(self._chunk):
            self._at = here + padded
            return self._chunk[here : here + size]
        at = self.num_bytes
        keep = name is None or self._wanted(name)
        data = self._read(min(padded, _PIECE)) if keep else b""
        while self.num_bytes - at < padded and (
            more := self._read(min(padded - self.num_bytes + at, _PIECE if keep else _CHUNK))
        ):
            data += more if keep else b""
        if self.num_bytes - at < padded:
            raise TarError(f"the file is cut short in a member of {size:,} bytes at byte {at:,}", member=name)
        return data[:size] if padded != size else data

    def _skip_sparse_map(self, header: bytes) -> None:
        """Old GNU sparse files have further blocks of their map after the header. Such files are no members."""
        more = header[482:483]
        while more.strip(b"\0"):
            more = self._read(BLOCK)[504:505]

    def _padding(self) -> None:
        at = self.num_bytes
        while block := self._read(1 << 16):
            if block.strip(b"\0"):
                problem = f"data after the end-of-archive mark at byte {at:,}: are these tars put together?"
                raise TarError(problem, at_boundary=True)


def _number(field: bytes) -> int:
    """An octal number, or base 256 when the first bit is set (GNU, for sizes from 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:  # int itself takes signs and underscores too
        return int(digits, 8)
    if digits:
        raise TarError(f"a size that is no octal number: {field!r}")
    return 0


def _checksum_holds(header: bytes) -> bool:
    """Whether the bytes' sum, with blanks for the sum itself, is the one in the header; by Adler's checksum, so mod 65,521."""
    try:
        wanted = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    total = zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF
    return wanted <= _LARGEST_SUM and total == (wanted - 8 * 32 + 1) % 65521


def _name(header: bytes) -> str:
    end = header.find(b"\0", 0, 100)
    name = header[: end if end >= 0 else 100]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """The records `length key=value` of a PAX header; only the path, the size and the mark of a sparse file matter here."""
    records: dict[str, str] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 10)
        length = data[at:blank] if blank > 0 else b""
        if not length.isdigit() or not 0 < int(length) <= len(data) - at:
            raise TarError("a PAX header whose record lengths do not fit")
        key, _, value = data[blank + 1 : at + int(length) - 1].partition(b"=")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise TarError("a PAX header with a size that is no number")
        if key in (b"path", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            records["sparse"] = "yes"
        at += int(length)
    return records
