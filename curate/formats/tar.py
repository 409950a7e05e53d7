"""Read tar archives front to back, with the position of every byte: ustar, GNU long names, PAX.

Our own, because export and random access need to know where each member's headers begin, and a
checksum of the whole file comes for nothing while it streams past.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from curate.storage.checksums import Checksum

BLOCK = 512
_EMPTY_BLOCK = bytes(BLOCK)
_LARGEST_SUM = BLOCK * 255
_REGULAR = b"0\x007"  # '0', NUL (before POSIX) and '7' (contiguous) are all plain files
# Links, devices, folders, pipes: whatever size they claim, headers follow headers.
_NO_DATA = b"123456"
_EXTENDED = b"xgLK"  # headers that describe the next member
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_MAX_EXTENDED = 1 << 20  # extended headers are small; a larger one is damage or an attack
_CHUNK = 1 << 18  # bytes read at once: fewer cost system calls, more miss the processor's cache
_MAX_READ = 64 << 20  # a size is only a claim: memory is taken for what is really in the file


class Member(NamedTuple):
    """One regular file, from the `offset` of its first header for `length` bytes."""

    name: str
    offset: int
    length: int
    data: bytes


class TarError(Exception):
    """The archive cannot be read beyond this point; what was read before is good.

    `member` is the name of the file that was cut short, if it is known. `at_boundary` says that
    the damage lies behind a whole member, so that no member is incomplete.
    """

    def __init__(
        self, message: str, *, member: str | None = None, at_boundary: bool = False
    ) -> None:
        super().__init__(message)
        self.member, self.at_boundary = member, at_boundary


class TarReader:
    """Iterate over the regular files of one tar stream.

    Large files for whose name `should_load` is false come without data. Afterwards `num_bytes` and
    `checksum` describe the whole file; the checksum is of the same kind as `checksum_like`, and
    there is none without `with_checksum`. Raises TarError where the archive is cut short or
    damaged, OSError where the stream fails.
    """

    def __init__(
        self,
        stream: BinaryIO,
        checksum_like: str | None = None,
        should_load: Callable[[str], bool] = lambda name: True,
        *,
        with_checksum: bool = True,
    ) -> None:
        self._stream, self._should_load = stream, should_load
        self._checksum = Checksum(checksum_like) if with_checksum else None
        self._chunk, self._position = b"", 0  # what was read, and how much of it was consumed
        self._chunk_offset = 0  # bytes of the file before the chunk

    @property
    def num_bytes(self) -> int:
        """How many bytes were consumed."""
        return self._chunk_offset + self._position

    @property
    def checksum(self) -> str:
        return self._checksum.text if self._checksum else ""

    def __iter__(self) -> Iterator[Member]:
        start, overrides = 0, dict[str, str]()
        while (header := self._read_header()) is not None:
            typeflag, size = header[156:157], _parse_number(header[124:136])
            if typeflag in _REGULAR and not overrides:  # nearly all members
                name = _header_name(header)
                data = self._read_payload(size, name)
                stop = self._chunk_offset + self._position
                yield Member(name, start, stop - start, data)
                start = stop
                continue
            is_extended = typeflag in _EXTENDED
            if is_extended and size > _MAX_EXTENDED:
                offset = self.num_bytes - BLOCK
                raise TarError(f"an extended header of {size:,} bytes at byte {offset:,}")
            if typeflag in _NO_DATA:
                size = 0
            elif not is_extended:
                size = int(overrides.get("size", size))
            if typeflag == b"S":
                self._skip_sparse_map(header)
            member_name = None if is_extended else overrides.get("path") or _header_name(header)
            data = self._read_payload(size, member_name)
            if typeflag == b"x":
                overrides |= _parse_pax_records(data)
            elif typeflag == b"L":
                overrides["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif member_name is not None:
                if typeflag in _REGULAR and "sparse" not in overrides:
                    yield Member(member_name, start, self.num_bytes - start, data)
                overrides = {}
            if typeflag not in b"xLK":  # a member begins at the headers that describe it
                start = self.num_bytes
        self._check_padding()

    def drain(self) -> None:
        """Read to the end without parsing, so that `checksum` covers the whole file."""
        while self._read(_CHUNK):
            pass

    def _read(self, count: int) -> bytes:
        """The next bytes; fewer than `count` only at the end of the file."""
        position, stop = self._position, self._position + count
        if stop <= len(self._chunk):
            self._position = stop
            return self._chunk[position:stop]
        chunks, missing = [self._chunk[position:]], stop - len(self._chunk)
        while missing > 0:
            self._chunk_offset += len(self._chunk)
            self._chunk = self._stream.read(max(missing, _CHUNK))
            if self._checksum:
                self._checksum.update(self._chunk)
            self._position = min(missing, len(self._chunk))
            chunks.append(self._chunk[: self._position])
            missing -= self._position
            if not self._chunk:
                break
        return b"".join(chunks)

    def _read_header(self) -> bytes | None:
        header = self._read(BLOCK)
        if header == _EMPTY_BLOCK:
            return None
        if len(header) == BLOCK and _is_checksum_valid(header):
            return header
        offset = self.num_bytes - len(header)
        for magic, name in _COMPRESSED.items():
            if offset == 0 and header.startswith(magic):
                raise TarError(
                    f"a {name} file: samples need byte offsets in a plain tar, so unpack it first"
                )
        if not header:
            problem = (
                f"the file ends at byte {offset:,} without an end-of-archive mark: "
                "it may be cut short"
            )
            raise TarError(problem, at_boundary=True)
        if len(header) < BLOCK:
            raise TarError(f"the file is cut short in a header at byte {offset:,}")
        raise TarError(f"not a tar header at byte {offset:,} (its checksum does not hold)")

    def _read_payload(self, size: int, name: str | None) -> bytes:
        padded, position = -(-size // BLOCK) * BLOCK, self._position
        if position + padded <= len(self._chunk):
            self._position = position + padded
            return self._chunk[position : position + size]
        start = self.num_bytes
        is_loaded = name is None or self._should_load(name)
        limit = _MAX_READ if is_loaded else _CHUNK
        data = self._read(min(padded, _MAX_READ)) if is_loaded else b""
        while missing := padded - (self.num_bytes - start):
            more = self._read(min(missing, limit))
            if not more:
                raise TarError(
                    f"the file is cut short in a member of {size:,} bytes at byte {start:,}",
                    member=name,
                )
            if is_loaded:
                data += more
        return data[:size] if padded != size else data

    def _skip_sparse_map(self, header: bytes) -> None:
        """Old GNU sparse files, which are no members, continue their map after the header."""
        continues = header[482:483]
        while continues.strip(b"\0"):
            continues = self._read(BLOCK)[504:505]

    def _check_padding(self) -> None:
        offset = self.num_bytes
        while block := self._read(1 << 16):
            if block.strip(b"\0"):
                problem = (
                    f"data after the end-of-archive mark at byte {offset:,}: "
                    "are these tars put together?"
                )
                raise TarError(problem, at_boundary=True)


def _parse_number(field: bytes) -> int:
    """An octal number, or base 256 when the first bit is set (GNU, for sizes from 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    # int() itself would take signs and underscores too
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)
    if digits:
        raise TarError(f"a size that is no octal number: {field!r}")
    return 0


def _is_checksum_valid(header: bytes) -> bool:
    """Whether the header's bytes sum to the value in it, with blanks for the value itself.

    By Adler's checksum, which is fast and holds the sum modulo 65,521.
    """
    try:
        expected = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    total = zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF
    return expected <= _LARGEST_SUM and total == (expected - 8 * 32 + 1) % 65521


def _header_name(header: bytes) -> str:
    end = header.find(b"\0", 0, 100)
    name = header[: end if end >= 0 else 100]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _parse_pax_records(data: bytes) -> dict[str, str]:
    """The records `length key=value` of a PAX header: path, size, and whether it is sparse."""
    records: dict[str, str] = {}
    start = 0
    while start < len(data):
        blank = data.find(b" ", start, start + 10)
        length = data[start:blank] if blank > 0 else b""
        if not length.isdigit() or not 0 < int(length) <= len(data) - start:
            raise TarError("a PAX header whose record lengths do not fit")
        key, _, value = data[blank + 1 : start + int(length) - 1].partition(b"=")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise TarError("a PAX header with a size that is no number")
        if key in (b"path", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            records["sparse"] = "yes"
        start += int(length)
    return records
