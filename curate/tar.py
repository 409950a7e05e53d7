"""Read tar archives front to back, with the place of every byte: ustar, GNU long names, PAX.

Our own, because export and random access need to know where each member's headers begin,
and a checksum of the whole file comes for nothing while it streams past.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_EMPTY = bytes(BLOCK)
_REGULAR = b"0\x007"  # '0', NUL (before POSIX) and '7' (contiguous) are all plain files
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
# Headers that describe the next member are small; a larger one is damage or an attack.
_MAX_EXTENDED = 1 << 20
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
    """Iterate over the regular files of one tar stream.

    Afterwards `num_bytes` and `sha256` describe the whole file. Raises TarError where the
    archive is cut short or damaged, OSError where the stream fails.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Member]:
        start, described = 0, dict[str, str]()
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136])
            if kind in b"xgLK" and size > _MAX_EXTENDED:
                raise TarError(f"an extended header of {size:,} bytes at byte {self.num_bytes - BLOCK:,}")
            size = int(described.get("size", size)) if kind not in b"xgLK" else size
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
        """Read to the end without looking, so that `sha256` and `num_bytes` cover the whole file."""
        while self._read(1 << 20):
            pass

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        self._hash.update(data)
        self.num_bytes += len(data)
        return data

    def _header(self) -> bytes | None:
        at = self.num_bytes
        header = self._read(BLOCK)
        if header == _EMPTY:
            return None
        if at == 0:
            for magic, name in _COMPRESSED.items():
                if header.startswith(magic):
                    raise TarError(f"a {name} file: samples need byte offsets in a plain tar, so unpack it first")
        if not header:
            problem = f"the file ends at byte {at:,} without an end-of-archive mark: it may be cut short"
            raise TarError(problem, at_boundary=True)
        if len(header) < BLOCK:
            raise TarError(f"the file is cut short in a header at byte {at:,}")
        if not _checksum_holds(header):
            raise TarError(f"not a tar header at byte {at:,} (its checksum does not hold)")
        return header

    def _payload(self, size: int, name: str | None) -> bytes:
        at, padded = self.num_bytes, -(-size // BLOCK) * BLOCK
        data = self._read(min(padded, _PIECE))
        while len(data) < padded and (more := self._read(min(padded - len(data), _PIECE))):
            data += more
        if len(data) < padded:
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
    if digits.strip(b"01234567"):
        raise TarError(f"a size that is no octal number: {field!r}")
    return int(digits, 8) if digits else 0


def _checksum_holds(header: bytes) -> bool:
    try:
        wanted = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return sum(header) - sum(header[148:156]) + 8 * 32 == wanted


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """The records `length key=value` of a PAX header; only the path, the size and the mark of a sparse file matter here."""
    records: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or len(length) > 9 or not 0 < int(length) <= len(data):
            raise TarError("a PAX header whose record lengths do not fit")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise TarError("a PAX header with a size that is no number")
        if key in (b"path", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            records["sparse"] = "yes"
        data = data[int(length) :]
    return records
