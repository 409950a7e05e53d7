"""Files on this machine and in object stores, read and written by one set of functions.

A location is text: an absolute path, or a URL that fsspec can open. A file in an object store
appears when it is whole, by the store's own doing, and has no temporary name.
"""

import contextlib
import errno
import fnmatch
import glob
import io
import os
import re
import shutil
import stat as stat_module
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from curate.storage import web
from curate.storage.credentials import reveal_credentials
from curate.storage.locks import TEMPORARY_PREFIX, local_tempdir

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
# Listings are never cached, because other processes write. Failed requests are repeated with
# growing pauses, which the other clients do by themselves.
_CLIENT_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "retries": {"mode": "standard", "max_attempts": 10},
            "max_pool_connections": 32,  # as many requests as curate.stream has in flight
        },
    },
    # http_proxy and its like are honoured.
    "http": {"client_kwargs": {"trust_env": True}},
}
# Object stores: they answer any byte range and list a folder, which a web server may not.
_RANGE_SCHEMES = {"s3", "s3a", "gs", "gcs", "az", "abfs"}
# For files that are read from the start: blocks are fetched ahead of the reader.
_SEQUENTIAL_OPTIONS = {
    "block_size": 8 << 20,
    "cache_type": "background",
    "cache_options": {"maxblocks": 4},
}

_WEB_BUFFER = 1 << 18
# A listing answers for a thousand files, so it pays from a few on.
_MIN_LISTED = 8
_CONCURRENT_REQUESTS = 32


class FileStat(NamedTuple):
    """What tells cheaply whether a file may have changed: its size, and a time stamp or ETag.

    A web server may leave out both: the size is None then, the ETag empty.
    """

    num_bytes: int | None
    etag: str

    def matches(self, num_bytes: int | None, etag: str) -> bool:
        """Whether nothing says that the file has changed; what is unknown says nothing."""
        is_same_size = self.num_bytes == num_bytes or None in (self.num_bytes, num_bytes)
        return is_same_size and (self.etag == etag or "" in (self.etag, etag))


def is_url(location: str) -> bool:
    """Whether a location is a URL, not a path."""
    return _URL.match(location) is not None


def resolve(location: str | os.PathLike[str]) -> str:
    """A location as it is stored: an absolute path, or the URL itself; file:// is a path."""
    text = os.fspath(location).removeprefix("file://")
    return text if is_url(text) else os.path.abspath(os.path.expanduser(text))


def join(folder: str, *names: str) -> str:
    """The location of a file below a folder."""
    return "/".join((folder.rstrip("/"), *names))


def filename(location: str) -> str:
    """The last part of a location."""
    return location.rstrip("/").rpartition("/")[2]


def supports_ranges(location: str) -> bool:
    """Whether the store of a URL is known to answer byte ranges."""
    return location.partition("://")[0] in _RANGE_SCHEMES


def open_binary(
    location: str,
    *,
    buffered: bool = True,
    sequential: bool = False,
    known_stat: FileStat | None = None,
) -> BinaryIO:
    """Open a file for reading; `sequential` fetches ahead from object stores. Raises OSError.

    With `known_stat`, S3 is not asked for the size again. Pipes, devices and folders are refused,
    because they would be read for ever or not at all.
    """
    if not is_url(location):
        check_regular(location)
        return open(location, "rb", buffering=-1 if buffered else 0)
    if web.is_web_url(location):
        file = web.WebFile(location)
        return io.BufferedReader(file, _WEB_BUFFER) if buffered else cast(BinaryIO, file)
    filesystem, path = _client(location)
    options = _SEQUENTIAL_OPTIONS if sequential and supports_ranges(location) else {}
    with wrap_remote_errors():
        if known_stat is None or not known_stat.num_bytes or not _is_s3(location):
            return cast(BinaryIO, filesystem.open(path, "rb", **options))
        file = filesystem.open(path, "rb", size=known_stat.num_bytes, **options)
        file.details = {"name": path, "size": known_stat.num_bytes, "ETag": known_stat.etag}
        return cast(BinaryIO, file)


def _is_s3(location: str) -> bool:
    return location.partition("://")[0] in ("s3", "s3a")


def read_bytes(location: str) -> bytes:
    """The content of a file. Raises OSError."""
    if supports_ranges(location):
        filesystem, path = _client(location)
        # In parts side by side, its client would ask for the size first.
        options = {"max_concurrency": 1} if _is_s3(location) else {}
        with wrap_remote_errors():
            return cast(bytes, filesystem.cat_file(path, **options))
    with open_binary(location) as file, wrap_remote_errors():
        return file.read()


def read_ranges(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes [start, stop) of a file in a store with byte ranges, fetched side by side.

    Raises OSError.
    """
    filesystem, path = _client(url)
    starts, stops = zip(*ranges, strict=True)
    with wrap_remote_errors():
        chunks = filesystem.cat_ranges(
            [path] * len(ranges), list(starts), list(stops), on_error="return"
        )
    for chunk in chunks:
        if isinstance(chunk, OSError):
            raise chunk
        if isinstance(chunk, Exception):
            raise OSError(f"{type(chunk).__name__}: {chunk}") from chunk
    return list(chunks)


def read_range(location: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on; fewer where the file ends before. Raises OSError."""
    if supports_ranges(location):
        return read_ranges(location, [(offset, offset + length)])[0]
    if web.is_web_url(location):
        return web.read_range(location, offset, offset + length)
    with open_binary(location) as file, wrap_remote_errors():
        file.seek(offset)
        return file.read(length)


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file on this machine; OSError for anything else."""
    status = os.stat(path)
    if not stat_module.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return status


def stat(location: str) -> FileStat:
    """Size, and time stamp or ETag, of a file. Raises OSError if it does not exist."""
    if not is_url(location):
        status = check_regular(location)
        return FileStat(status.st_size, str(status.st_mtime_ns))
    if web.is_web_url(location):
        return FileStat(*web.stat(location))
    filesystem, path = _client(location)
    with wrap_remote_errors():
        info = filesystem.info(path)
    if info.get("type") == "directory":
        raise OSError(errno.EISDIR, "it is a folder")
    return _stat_of(info)


def _stat_of(info: dict[str, Any]) -> FileStat:
    etag_fields = ("ETag", "etag", "mtime", "LastModified", "updated")
    etag = next((info[name] for name in etag_fields if info.get(name)), "")
    size = info.get("size")
    return FileStat(None if size is None else int(size), str(etag))


def stat_files(locations: Iterable[str]) -> dict[str, FileStat | OSError]:
    """The status of each file as `stat` gives it, or why there is none.

    Object stores list folders of which several files are asked for: a request for a thousand files
    instead of one for each. Where that is not allowed, as for some public buckets, and elsewhere,
    files are looked at side by side.
    """
    locations = list(locations)
    listed: dict[str, FileStat] = {}
    folders: dict[str, list[str]] = {}
    for location in locations:
        if supports_ranges(location):
            folders.setdefault(location.rpartition("/")[0], []).append(location)
    for folder, files_of_folder in folders.items():
        if len(files_of_folder) >= _MIN_LISTED:
            listed |= _list_stats(folder, files_of_folder)
    others = [location for location in locations if location not in listed]
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        stats = dict(zip(others, pool.map(_stat_or_error, others), strict=True))
    return {location: listed.get(location) or stats[location] for location in locations}


def _list_stats(folder: str, locations: list[str]) -> dict[str, FileStat]:
    """What a store lists of these files of a folder; nothing where it refuses."""
    filesystem, path = _client(folder)
    names = [filename(location) for location in locations]
    prefix = os.path.commonprefix([min(names), max(names)])  # noqa: RUF071 - of characters
    try:
        with wrap_remote_errors():
            if prefix:
                infos = list(filesystem.find(path, prefix=prefix, detail=True).values())
            else:  # find would list all folders below, which may hold far more
                infos = filesystem.ls(path, detail=True, refresh=True)
    except OSError:
        return {}
    by_path = {info["name"]: info for info in infos if info.get("type") == "file"}
    paths = {location: filesystem._strip_protocol(location) for location in locations}
    return {
        location: _stat_of(by_path[path]) for location, path in paths.items() if path in by_path
    }


def _stat_or_error(location: str) -> FileStat | OSError:
    try:
        return stat(location)
    except OSError as error:
        return error


def stat_after(location: str, before: FileStat) -> FileStat:
    """The status of a file that was just read, to be compared with the one `before`.

    Some web servers give every answer an ETag of its own, which says nothing: it is left out.
    """
    after = stat(location)
    if web.is_web_url(location) and not after.matches(before.num_bytes, before.etag):
        is_arbitrary = stat(location).etag not in (after.etag, before.etag)
        return after._replace(etag="") if is_arbitrary else after
    return after


def is_file(location: str) -> bool:
    """Whether a file exists. Raises OSError where a store cannot be reached."""
    if not is_url(location):
        return os.path.isfile(location)
    if web.is_web_url(location):
        try:
            web.stat(location)
        except FileNotFoundError:
            return False
        return True
    filesystem, path = _client(location)
    with wrap_remote_errors():
        return bool(filesystem.isfile(path))


def is_folder(location: str) -> bool:
    """Whether a folder exists, which in an object store means: something below it."""
    if not is_url(location):
        return os.path.isdir(location)
    filesystem, path = _client(location)
    with wrap_remote_errors():
        return bool(filesystem.isdir(path))


def list_files(folder: str, pattern: str = "*") -> list[str]:
    """The files of a folder by their names, sorted; none where there is no such folder.

    Other machines may see new files late (NFS): what workers have written is known by their
    results, never by a listing. Files of dead writers are listed too.
    """
    try:
        if not is_url(folder):
            names = os.listdir(folder)
        else:
            filesystem, path = _client(folder)
            with wrap_remote_errors():
                entries = filesystem.ls(path, detail=False)
            names = [entry.rstrip("/").rpartition("/")[2] for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [join(folder, name) for name in sorted(fnmatch.filter(names, pattern))]


def glob_files(pattern: str) -> list[str]:
    """The files that a pattern with * ? or [ names, as locations. Raises OSError."""
    if not is_url(pattern):
        return [os.path.abspath(path) for path in glob.glob(pattern) if os.path.isfile(path)]
    filesystem, path = _client(pattern)
    with wrap_remote_errors():
        return [filesystem.unstrip_protocol(match) for match in filesystem.glob(path)]


def delete_file(location: str) -> None:
    """Remove a file; no error where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if not is_url(location):
            os.unlink(location)
            return
        filesystem, path = _client(location)
        with wrap_remote_errors():
            filesystem.rm_file(path)


def delete_files(locations: Iterable[str]) -> None:
    """Remove files; no error for those that do not exist. S3 is told of many in a request."""
    locations = list(locations)
    # Its client would take such names for patterns.
    in_s3 = [name for name in locations if _is_s3(name) and not glob.has_magic(name)]
    if in_s3:
        filesystem, _ = _client(in_s3[0])
        with wrap_remote_errors():
            filesystem.rm([filesystem._strip_protocol(location) for location in in_s3])
    others = set(locations).difference(in_s3)
    if any(map(is_url, others)):
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            list(pool.map(delete_file, others))
    else:
        for location in others:
            delete_file(location)


def delete_remote_folder(url: str) -> None:
    """Remove a folder in an object store with everything in it."""
    filesystem, path = _client(url)
    with contextlib.suppress(FileNotFoundError), wrap_remote_errors():
        filesystem.rm(path, recursive=True)


def delete_folder(location: str) -> None:
    """Remove a folder with everything in it; no error where there is none.

    A folder of this machine loses its name first, in one step, so that nobody sees a part of it.
    """
    if is_url(location):
        delete_remote_folder(location)
        return
    temporary = Path(location).with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(location, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def link_file(source: str, target: str) -> None:
    """Give a file a second name, or make a copy of it where there are no links. Raises OSError.

    Both are locations of one kind. What is at the target is replaced.
    """
    if is_url(source):
        filesystem, path = _client(source)
        with wrap_remote_errors():
            filesystem.copy(path, filesystem._strip_protocol(target))
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(source, target)


def upload(path: Path, url: str) -> None:
    """Copy a file of this machine to a URL, where it appears when it is whole. Raises OSError."""
    filesystem, remote_path = _client(url)
    with wrap_remote_errors():
        filesystem.put_file(str(path), remote_path)


@contextlib.contextmanager
def localize(locations: Iterable[str]) -> Iterator[list[Path]]:
    """The same files on this machine, for the block: as they are, or copies with the same names.

    All locations are of one kind. Raises OSError.
    """
    locations = list(locations)
    if not any(map(is_url, locations)):
        yield [Path(location) for location in locations]
        return
    with local_tempdir() as folder:
        copies = [folder / filename(location) for location in locations]
        filesystem, _ = _client(locations[0])
        with wrap_remote_errors():
            remote_paths = [filesystem._strip_protocol(location) for location in locations]
            filesystem.get(remote_paths, [str(copy) for copy in copies])
        yield copies


@contextlib.contextmanager
def wrap_remote_errors() -> Iterator[None]:
    """Turn whatever clients of remote file systems raise into OSError, which callers handle."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the boundary to other people's clients
        raise OSError(f"{type(error).__name__}: {error}") from error


def _client(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path in it."""
    import fsspec

    scheme = url.partition("://")[0]
    options = _CLIENT_OPTIONS.get({"s3a": "s3", "https": "http"}.get(scheme, scheme), {})
    with wrap_remote_errors():
        address = reveal_credentials(url)
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(address, **options))
