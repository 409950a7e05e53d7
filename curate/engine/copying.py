"""The work of `curate export` for one output shard: copy byte ranges of tars, member for member as they came."""

import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from curate import engine, shards, storage
from curate.atomic import replacing
from curate.errors import CurateError
from curate.fingerprints import Fingerprint
from curate.tar import BLOCK, TarReader

_END = bytes(2 * BLOCK)
_FETCHED = 8 << 20  # bytes of a request to an object store at most, of which four are on their way
_CHUNK = 1 << 18  # bytes on their way, few enough for the processor's cache: read, fingerprinted, written


class Source(NamedTuple):
    """A shard as the catalog knows it."""

    url: str
    num_bytes: int
    version: str
    fingerprint: str


class Piece(NamedTuple):
    """Samples of one source shard: where they lie, int64 [n] each, and what goes before the keys that must change."""

    source: Source
    offsets: np.ndarray
    lengths: np.ndarray
    prefixes: dict[int, str]  # by place in the piece; empty where every key stays


class Output(NamedTuple):
    """One shard to write."""

    path: str
    pieces: list[Piece]


@dataclass(frozen=True)
class WriteShard:
    """The task: write one output shard; return its path, samples, bytes and fingerprint for the manifest."""

    folder: Path

    def __call__(self, output: Output) -> dict[str, Any]:
        path = self.folder / output.path
        count = sum(len(piece.offsets) for piece in output.pieces)
        if _is_whole(path, output):
            fingerprint = shards.fingerprint(str(path), None)
        else:
            with replacing(path) as temporary:
                fingerprint = _write(temporary, output)
        engine.tick(count)
        return {"path": output.path, "num_samples": count, "num_bytes": path.stat().st_size, "fingerprint": fingerprint}


def _is_whole(path: Path, output: Output) -> bool:
    """Whether an earlier, killed call finished this shard. Where keys change, its size is not known: it is written anew."""
    if not path.is_file() or any(piece.prefixes for piece in output.pieces):
        return False
    return path.stat().st_size == sum(int(piece.lengths.sum()) for piece in output.pieces) + len(_END)


def _write(path: Path, output: Output) -> str:
    """Write all pieces, and return the fingerprint of what was written."""
    fingerprint = Fingerprint()
    with path.open("wb") as file:
        for data in itertools.chain.from_iterable(map(_copied, output.pieces)):
            fingerprint.update(data)
            file.write(data)
        fingerprint.update(_END)
        file.write(_END)
    return fingerprint.text


def fingerprint_of(output: Output) -> str:
    """What the output's fingerprint must be, by the sources as they are now. Raises CurateError if one has changed."""
    fingerprint = Fingerprint()
    for data in itertools.chain.from_iterable(map(_copied, output.pieces)):
        fingerprint.update(data)
    fingerprint.update(_END)
    return fingerprint.text


def _copied(piece: Piece) -> Iterator[bytes | memoryview]:
    """The piece's bytes; each view is good until the next is asked for."""
    check_unchanged(piece.source)
    if storage.has_ranges(piece.source.url):
        yield from _fetched(piece)
        return
    with shards.open_shard(piece.source.url, buffered=False) as stream:
        if not piece.prefixes:
            yield from _ranges(stream, merged(piece.offsets, piece.lengths), piece.source.url)
            return
        for place, (start, length) in enumerate(zip(piece.offsets, piece.lengths, strict=True)):
            data = b"".join(map(bytes, _ranges(stream, [(int(start), int(start + length))], piece.source.url)))
            prefix = piece.prefixes.get(place)
            yield renamed(data, prefix) if prefix else data


def _fetched(piece: Piece) -> Iterator[bytes]:
    """The same from an object store: ranges of some megabytes at once, of neighbours one."""
    url, place = piece.source.url, 0
    each = zip(piece.offsets.tolist(), (piece.offsets + piece.lengths).tolist(), strict=True)
    for batch in _batches(each if piece.prefixes else _split(merged(piece.offsets, piece.lengths))):
        for (start, stop), data in zip(batch, shards.read_ranges(url, batch), strict=True):
            if len(data) != stop - start:
                raise CurateError(f"'{url}' ended before byte {stop:,}, its last sample: it changed while it was read")
            prefix = piece.prefixes.get(place)
            yield renamed(data, prefix) if prefix else data
            place += 1


def _split(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Long ranges in pieces."""
    for start, stop in ranges:
        for begin in range(start, stop, _FETCHED):
            yield begin, min(begin + _FETCHED, stop)


def _batches(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Some ranges at a time, so that what is fetched side by side fits into memory."""
    batch: list[tuple[int, int]] = []
    total = 0
    for start, stop in ranges:
        if batch and total + stop - start > 4 * _FETCHED:
            yield batch
            batch, total = [], 0
        batch.append((start, stop))
        total += stop - start
    if batch:
        yield batch


def check_unchanged(source: Source) -> None:
    """CurateError if the shard's bytes are no longer those that were embedded."""
    try:
        found = shards.stat(source.url)
        same = found == (source.num_bytes, source.version)
        if same or (
            found.num_bytes == source.num_bytes and shards.fingerprint(source.url, source.fingerprint) == source.fingerprint
        ):
            return
    except OSError as error:
        raise CurateError(f"'{source.url}' cannot be read ({error.strerror or error}): put it back, then try again") from error
    raise CurateError(f"'{source.url}' has changed since it was embedded: restore it, or embed the new corpus (-c NEW)")


def merged(offsets: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) with neighbours that touch made one, so that long runs are read in one go."""
    if not len(offsets):
        return
    stops = offsets + lengths
    breaks = np.flatnonzero(offsets[1:] != stops[:-1]) + 1
    firsts = np.concatenate([[0], breaks])
    lasts = np.concatenate([breaks, [len(offsets)]]) - 1
    yield from ((int(offsets[first]), int(stops[last])) for first, last in zip(firsts, lasts, strict=True))


def _ranges(stream: BinaryIO, ranges: Iterable[tuple[int, int]], url: str) -> Iterator[memoryview]:
    """Ranges [start, stop) of a file one after the other, gathered in one buffer that is used again and again."""
    buffer = memoryview(bytearray(_CHUNK))
    filled = 0
    for start, stop in ranges:
        stream.seek(start)
        while start < stop:
            count = stream.readinto(buffer[filled : filled + stop - start])  # type: ignore[attr-defined]
            if not count:
                raise CurateError(f"'{url}' ended at byte {start:,}, before its last sample: it changed while it was read")
            start, filled = start + count, filled + count
            if filled == len(buffer):
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def renamed(sample: bytes, prefix: str) -> bytes:
    """A sample's bytes in a tar with `prefix` before the key in the name of each member; only the headers differ."""
    out = io.BytesIO()
    for member in TarReader(io.BytesIO(sample + _END)):
        header = tarfile.TarInfo(renamed_key(member.name, prefix))
        header.size = len(member.data)
        out.write(header.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape"))
        out.write(member.data + bytes(-len(member.data) % BLOCK))
    return out.getvalue()


def renamed_key(key: str, prefix: str) -> str:
    """`folder/key` with the prefix: `folder/PREFIXkey`."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{prefix}{name}"
