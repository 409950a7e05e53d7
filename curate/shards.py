"""WebDataset shards: which files a pattern names, and the samples inside one tar."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from curate.errors import CurateError
from curate.fingerprints import Fingerprint
from curate.storage import check_regular, has_ranges, is_url, options, reaching, streamed
from curate.tar import Member, TarError

# webdataset's rule: the key ends at the first dot of the file's name, folders belong to the key. Its own pattern takes
# folder/._a.jpg, which macOS adds beside folder/a.jpg, for a sample of the key `folder/`; here hidden files are none.
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
_POSITION_BITS = 24  # sample_id = shard_id << 24 | position: up to 16.7 million samples a shard


class Sample(NamedTuple):
    """Members that follow each other under one key; `offset` and `length` span them, headers included, in the tar."""

    key: str
    offset: int
    length: int
    members: dict[str, bytes]


class Stat(NamedTuple):
    """What tells cheaply whether a file may have changed: its size, and a time stamp or an ETag."""

    num_bytes: int
    version: str


def expand(patterns: Iterable[str]) -> list[str]:
    """The shards that paths, folders, globs, brace ranges and URLs name, in a stable order and each once.

    Local paths become absolute. Raises CurateError for a pattern that matches nothing, and for `pipe:`.
    """
    from braceexpand import braceexpand

    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise CurateError(f"'{pattern}': curate never runs shell commands; give a path or a URL such as s3://…")
        try:
            plain_patterns = list(braceexpand(pattern.removeprefix("file://")))
        except ValueError as error:
            raise CurateError(f"'{pattern}' is no brace pattern: {error}") from error
        for plain in plain_patterns:
            urls = _expand_remote(plain) if is_url(plain) else _expand_local(plain)
            if not urls:
                raise CurateError(f"no shard at '{plain}': check the path (nothing was changed)")
            found.update(dict.fromkeys(urls))
    for url in found:
        if readable(url) != url:
            raise CurateError(f"the name of the shard '{readable(url)}' is no Unicode: rename it")
    return sorted(found, key=natural)


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which `part-10` comes after `part-9`; no two texts have the same."""

    def key(part: str) -> tuple[int, str]:
        digits = part.lstrip("0")
        return (len(digits), digits) if part.isdecimal() else (-1, part)

    return [*map(key, re.split(r"(\d+)", text)), (-1, text)]


def _expand_local(pattern: str) -> list[str]:
    path = Path(os.path.normpath(os.path.expanduser(pattern)))
    if path.is_dir():
        return [os.path.abspath(tar) for tar in path.glob("*.tar")]
    if path.exists():
        return [os.path.abspath(path)]
    return [os.path.abspath(match) for match in glob.glob(str(path)) if os.path.isfile(match)]


def _expand_remote(pattern: str) -> list[str]:
    if ".." in pattern.split("/"):
        raise CurateError(f"'{pattern}': write the URL without '..'")
    if not re.search(r"[*?\[]", pattern):
        return [pattern]
    filesystem, path = _filesystem(pattern)
    try:
        with reaching():
            found = [filesystem.unstrip_protocol(match) for match in filesystem.glob(path)]
    except OSError as error:
        raise CurateError(f"cannot list '{pattern}': {error.strerror or error}") from error
    for url in found:
        if ".." in url.split("/"):
            raise CurateError(f"'{url}' has '..' in its name, and exports could not take it: rename it")
    return found


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        with reaching():
            return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options(url)))
    except OSError as error:
        raise CurateError(f"cannot open '{url}': {error.strerror or error}") from error


def open_shard(url: str, *, buffered: bool = True) -> BinaryIO:
    """The shard's bytes from the start. Raises OSError."""
    if not is_url(url):
        check_regular(url)
        return open(url, "rb", buffering=-1 if buffered else 0)
    filesystem, path = _filesystem(url)
    with reaching():
        return cast(BinaryIO, filesystem.open(path, "rb", **streamed(url)))


def read_ranges(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes [start, stop) of a shard in a store that has byte ranges, fetched side by side. Raises OSError."""
    filesystem, path = _filesystem(url)
    starts, stops = zip(*ranges, strict=True)
    with reaching():
        found = filesystem.cat_ranges([path] * len(ranges), list(starts), list(stops), on_error="return")
    for data in found:
        if isinstance(data, Exception):
            raise data if isinstance(data, OSError) else OSError(f"{type(data).__name__}: {data}") from data
    return list(found)


def read_range(url: str, offset: int, length: int) -> bytes:
    """`length` bytes of a shard from `offset` on, fewer where it ends before. Raises OSError."""
    if has_ranges(url):
        return read_ranges(url, [(offset, offset + length)])[0]
    with open_shard(url) as stream, reaching():
        stream.seek(offset)
        return stream.read(length)


def stat(url: str) -> Stat:
    """Size and version of a shard. Raises OSError if it is not there."""
    if not is_url(url):
        status = check_regular(url)
        return Stat(status.st_size, str(status.st_mtime_ns))
    filesystem, path = _filesystem(url)
    with reaching():
        info = filesystem.info(path)
    version = next((info[name] for name in ("ETag", "etag", "mtime", "LastModified", "updated") if info.get(name)), "")
    return Stat(int(info["size"] or 0), str(version))


def fingerprint(url: str, like: str | None) -> str:
    """The fingerprint of a whole shard, of the same kind as `like`. Raises OSError."""
    with open_shard(url) as stream, reaching():
        return Fingerprint(like).of(stream)


def first_sample_id(shard_id: int) -> int:
    """The id of a shard's first sample; those after it count up. Ids sort in tar order and need no coordination."""
    return shard_id << _POSITION_BITS


def shard_of(sample_ids: Any) -> Any:
    """The shard of a sample, or of each of an array of them."""
    return sample_ids >> _POSITION_BITS


def samples(members: Iterable[Member]) -> Iterator[Sample]:
    """Group a tar's members into samples as webdataset does: neighbours with the same key belong together.

    A second member of the same kind begins a new sample, so a key that comes twice in a row is two
    samples. Members without a key (hidden files, names without a dot) belong to no sample.
    Where the archive is damaged, whole samples come first, then DamagedShard.
    """
    sample: Sample | None = None
    try:
        for member in members:
            key, kind = split_name(member.name)
            if not key:
                continue
            if sample is not None and (key != sample.key or kind in sample.members):
                yield sample
                sample = None
            if sample is None:
                sample = Sample(key, member.offset, 0, {})
            sample.members[kind] = member.data
            sample = sample._replace(length=member.offset + member.length - sample.offset)
    except TarError as error:
        cut = split_name(error.member or "")[0]
        if sample is not None and (error.at_boundary or cut not in ("", sample.key)):
            yield sample
            sample = None
        raise DamagedShard(str(error), cut or (sample.key if sample else "")) from error
    if sample is not None:
        yield sample


class DamagedShard(Exception):
    """A shard cannot be read further; `key` is the sample that was cut short, or empty."""

    def __init__(self, problem: str, key: str) -> None:
        super().__init__(problem)
        self.key = key


def readable(key: str) -> str:
    """A key as Unicode, which is all that Parquet and SQL hold: bytes that are none are written as escapes."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_name(name: str) -> tuple[str, str]:
    """The key and the kind (lower-case extension) of a member; both empty for one that belongs to no sample."""
    match = _KEY.match(name)
    if not match:
        return "", ""
    key, kind = match.groups()
    return key, kind.lower() if kind.isascii() else readable(kind.lower())
