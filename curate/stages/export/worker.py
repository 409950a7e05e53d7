"""The work of `curate export` for one output shard: copy byte ranges of tars, member for member."""

import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.execution.reporting import report_progress
from curate.formats.tar import BLOCK, TarReader
from curate.storage import files, web
from curate.storage.atomic import atomic_write
from curate.storage.checksums import Checksum, file_checksum

_END_OF_ARCHIVE = bytes(2 * BLOCK)
_MAX_REQUEST = 8 << 20  # bytes of a request to an object store, of which four are in flight
_PARALLEL_REQUESTS = 4
_COPY_BUFFER = 1 << 18  # few enough bytes for the processor's cache: read, hashed, written


class SourceShard(NamedTuple):
    """A shard as the catalog knows it."""

    url: str
    num_bytes: int
    etag: str
    checksum: str


class SourceRange(NamedTuple):
    """Samples of one source shard: offsets and lengths, int64 [n] each.

    `prefixes` are put before keys that must change, by the sample's index; empty where all stay.
    """

    source: SourceShard
    offsets: np.ndarray
    lengths: np.ndarray
    prefixes: dict[int, str]


class OutputShard(NamedTuple):
    """One shard to write."""

    path: str
    ranges: list[SourceRange]


@dataclass(frozen=True)
class WrittenShard:
    """What the manifest says of a written shard."""

    path: str
    num_samples: int
    num_bytes: int
    checksum: str


@dataclass(frozen=True)
class WriteShard:
    """The task: write one output shard, unless with `reuse` a killed call has written it."""

    folder: str
    reuse: bool = False

    def __call__(self, output: OutputShard) -> WrittenShard:
        location = files.join(self.folder, output.path)
        num_samples = sum(len(source_range.offsets) for source_range in output.ranges)
        num_bytes = _finished_bytes(location, output) if self.reuse else None
        if num_bytes is not None:
            checksum = file_checksum(location)
        else:
            with atomic_write(location) as temporary, temporary.open("wb") as file:
                checksum = _write(file, output)
                num_bytes = file.tell()
        report_progress(num_samples)
        return WrittenShard(output.path, num_samples, num_bytes, checksum)


def _finished_bytes(location: str, output: OutputShard) -> int | None:
    """The size of a shard that a killed call has written, if it has.

    Not known where keys change, as sizes do.
    """
    if any(source_range.prefixes for source_range in output.ranges):
        return None
    num_bytes = sum(int(source_range.lengths.sum()) for source_range in output.ranges)
    num_bytes += len(_END_OF_ARCHIVE)
    try:
        return num_bytes if files.stat(location).num_bytes == num_bytes else None
    except FileNotFoundError:
        return None


def _write(file: BinaryIO, output: OutputShard) -> str:
    """Write all ranges, and return the checksum of what was written."""
    checksum = Checksum()
    for data in _iterate_output(output):
        checksum.update(data)
        file.write(data)
    return checksum.text


def expected_checksum(output: OutputShard) -> str:
    """What the output's checksum must be, by the sources as they are now.

    Raises CurateError if one has changed.
    """
    checksum = Checksum()
    for data in _iterate_output(output):
        checksum.update(data)
    return checksum.text


def _iterate_output(output: OutputShard) -> Iterator[bytes | memoryview]:
    """The bytes of an output shard; each view is valid until the next is requested."""
    yield from itertools.chain.from_iterable(map(_iterate_range, output.ranges))
    yield _END_OF_ARCHIVE


def _iterate_range(source_range: SourceRange) -> Iterator[bytes | memoryview]:
    source, offsets, lengths, prefixes = source_range
    check_unchanged(source)
    if files.supports_ranges(source.url):
        yield from _fetch_ranges(source_range)
        return
    with files.open_binary(source.url, buffered=False) as stream:
        if not prefixes:
            yield from _read_ranges(stream, coalesce_ranges(offsets, lengths), source.url)
            return
        for index, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            sample_range = [(int(offset), int(offset + length))]
            data = b"".join(map(bytes, _read_ranges(stream, sample_range, source.url)))
            prefix = prefixes.get(index)
            yield rename_sample(data, prefix) if prefix else data


def _fetch_ranges(source_range: SourceRange) -> Iterator[bytes]:
    """The same from an object store: several megabytes a request, of neighbours one."""
    source, offsets, lengths, prefixes = source_range
    ranges = _split_ranges(coalesce_ranges(offsets, lengths))
    if prefixes:  # each sample by itself
        ranges = iter(zip(offsets.tolist(), (offsets + lengths).tolist(), strict=True))
    index = 0
    for batch in _batch_ranges(ranges):
        for (start, stop), data in zip(batch, files.read_ranges(source.url, batch), strict=True):
            if len(data) != stop - start:
                raise _ended_early(source.url, stop)
            prefix = prefixes.get(index)
            yield rename_sample(data, prefix) if prefix else data
            index += 1


def _split_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Long ranges in pieces."""
    for start, stop in ranges:
        for first in range(start, stop, _MAX_REQUEST):
            yield first, min(first + _MAX_REQUEST, stop)


def _batch_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Some ranges at a time, so that what is fetched side by side fits into memory."""
    batch: list[tuple[int, int]] = []
    total = 0
    for start, stop in ranges:
        if batch and total + stop - start > _PARALLEL_REQUESTS * _MAX_REQUEST:
            yield batch
            batch, total = [], 0
        batch.append((start, stop))
        total += stop - start
    if batch:
        yield batch


def check_unchanged(source: SourceShard) -> None:
    """CurateError if the shard's bytes are no longer those that were embedded."""
    try:
        stat = files.stat(source.url)
        if stat.num_bytes is not None and stat.matches(source.num_bytes, source.etag):
            return
        is_same_size = stat.num_bytes in (None, source.num_bytes)
        if is_same_size and file_checksum(source.url, source.checksum) == source.checksum:
            return
    except OSError as error:
        remedy = "put it back, then try again"
        if web.is_web_url(source.url) and isinstance(error, PermissionError):
            remedy = (
                "signatures and passwords are not stored; embed it from where it can be read "
                "without, and its bytes are recognised"
            )
        raise CurateError(
            f"'{source.url}' cannot be read ({error.strerror or error}): {remedy}"
        ) from error
    raise CurateError(
        f"'{source.url}' has changed since it was embedded: "
        "restore it, or embed the new corpus (-c NEW)"
    )


def coalesce_ranges(offsets: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop), with neighbours that touch made one, so that long runs are one read."""
    if not len(offsets):
        return
    stops = offsets + lengths
    gaps = np.flatnonzero(offsets[1:] != stops[:-1]) + 1
    firsts = np.concatenate([[0], gaps])
    lasts = np.concatenate([gaps, [len(offsets)]]) - 1
    for first, last in zip(firsts, lasts, strict=True):
        yield int(offsets[first]), int(stops[last])


def _read_ranges(
    stream: BinaryIO, ranges: Iterable[tuple[int, int]], url: str
) -> Iterator[memoryview]:
    """Ranges [start, stop) of a file one after the other, through one buffer that is reused."""
    buffer = memoryview(bytearray(_COPY_BUFFER))
    filled = 0
    for start, stop in ranges:
        stream.seek(start)
        while start < stop:
            target = buffer[filled : filled + stop - start]
            count = stream.readinto(target)  # type: ignore[attr-defined]
            if not count:
                raise _ended_early(url, start)
            start, filled = start + count, filled + count
            if filled == len(buffer):
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _ended_early(url: str, offset: int) -> CurateError:
    return CurateError(
        f"'{url}' ended at byte {offset:,}, before its last sample: it changed while it was read"
    )


def rename_sample(sample: bytes, prefix: str) -> bytes:
    """A sample's bytes with a prefix before its key in every member's name; only headers differ."""
    output = io.BytesIO()
    for member in TarReader(io.BytesIO(sample + _END_OF_ARCHIVE)):
        header = tarfile.TarInfo(prefix_key(member.name, prefix))
        header.size = len(member.data)
        output.write(header.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape"))
        output.write(member.data + bytes(-len(member.data) % BLOCK))
    return output.getvalue()


def prefix_key(key: str, prefix: str) -> str:
    """`folder/key` with the prefix: `folder/PREFIXkey`."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{prefix}{name}"
