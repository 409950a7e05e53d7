"""The work of `curate export` for one output shard: copy byte ranges of tars, member for member as they came."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from curate import engine, shards
from curate.atomic import replacing
from curate.errors import CurateError
from curate.tar import BLOCK, TarReader

_END = bytes(2 * BLOCK)
_CHUNK = 8 << 20


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
    """The task: write one output shard; return its path, samples, bytes and SHA-256 for the manifest."""

    folder: Path

    def __call__(self, output: Output) -> dict[str, Any]:
        path = self.folder / output.path
        count = sum(len(piece.offsets) for piece in output.pieces)
        if not _is_whole(path, output):
            with replacing(path) as temporary, temporary.open("wb") as file:
                for piece in output.pieces:
                    for data in _copied(piece):
                        file.write(data)
                file.write(_END)
        engine.tick(count)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": output.path, "num_samples": count, "num_bytes": path.stat().st_size, "sha256": digest}


def _is_whole(path: Path, output: Output) -> bool:
    """Whether an earlier, killed call finished this shard. Where keys change, its size is not known: it is written anew."""
    if not path.is_file() or any(piece.prefixes for piece in output.pieces):
        return False
    return path.stat().st_size == sum(int(piece.lengths.sum()) for piece in output.pieces) + len(_END)


def _copied(piece: Piece) -> Iterator[bytes]:
    check_unchanged(piece.source)
    with shards.open_shard(piece.source.url) as stream:
        if not piece.prefixes:
            for start, stop in merged(piece.offsets, piece.lengths):
                yield from _range(stream, start, stop, piece.source.url)
            return
        for place, (start, length) in enumerate(zip(piece.offsets, piece.lengths, strict=True)):
            data = b"".join(_range(stream, int(start), int(start + length), piece.source.url))
            prefix = piece.prefixes.get(place)
            yield renamed(data, prefix) if prefix else data


def check_unchanged(source: Source) -> None:
    """CurateError if the shard's bytes are no longer those that were embedded."""
    try:
        found = shards.stat(source.url)
        same = found == (source.num_bytes, source.version)
        if same or (found.num_bytes == source.num_bytes and shards.sha256(source.url) == source.fingerprint):
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


def _range(stream: BinaryIO, start: int, stop: int, url: str) -> Iterator[bytes]:
    stream.seek(start)
    while start < stop:
        data = stream.read(min(_CHUNK, stop - start))
        if not data:
            raise CurateError(f"'{url}' ended at byte {start:,}, before its last sample: it changed while it was read")
        yield data
        start += len(data)


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
