"""Where files lie: on this machine, or in an object store under a URL. Paths of both kinds are used alike.

A file in an object store appears when it is whole, by the store's own doing, and has no temporary name beside it.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from curate.errors import CurateError
from curate.workspaces import scratch

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
# How the clients are made: listings are never kept, since other processes write; failed requests are tried again with
# longer and longer pauses, which the other clients do by themselves.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"use_listings_cache": False, "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}}}
}


# Stores that answer any byte range: blocks are fetched ahead while earlier ones are worked on.
_RANGES = {"s3", "s3a", "gs", "gcs", "az", "abfs"}
_STREAMED = {"block_size": 8 << 20, "cache_type": "background", "cache_options": {"maxblocks": 4}}


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path."""
    return _URL.match(text) is not None


def options(url: str) -> dict[str, Any]:
    """The options of the fsspec client for a URL."""
    return _OPTIONS.get({"s3a": "s3"}.get(scheme := url.partition("://")[0], scheme), {})


def has_ranges(url: str) -> bool:
    """Whether a URL's store is known to answer byte ranges; a web server may not."""
    return url.partition("://")[0] in _RANGES


def streamed(url: str) -> dict[str, Any]:
    """The options under which the file of a URL is opened to be read from the start."""
    return _STREAMED if has_ranges(url) else {}


def at(place: str | Path) -> Path:
    """A path; that of a URL has the same methods."""
    text = str(place).removeprefix("file://")
    if not is_url(text):
        return Path(os.path.abspath(os.path.expanduser(text)))
    from upath import UPath

    return cast(Path, UPath(text, **options(text)))


def is_remote(path: Path) -> bool:
    """Whether a path is a URL's."""
    return not isinstance(path, os.PathLike)


def check_regular(path: str | Path) -> os.stat_result:
    """What a file of this machine is; OSError for pipes, devices and folders, which would be read for ever, or not at all."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return found


def opened(path: Path) -> BinaryIO:
    """The bytes of a file. Raises OSError."""
    if not is_remote(path):
        check_regular(path)
    return cast(BinaryIO, path.open("rb"))


def upload(file: Path, path: Path) -> None:
    """Bring a file of this machine to a remote path, where it appears when it is whole. Raises OSError."""
    remote: Any = path
    with reaching():
        remote.fs.put_file(str(file), remote.path)


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder by their names, in order, those of dead writers too; none where there is no such folder.

    Other machines may see new files late (NFS): what workers have written is known by their results, not by a list.
    """
    try:
        with reaching():
            return sorted(folder.glob(pattern))
    except FileNotFoundError:
        return []


def check_free(url: str) -> None:
    """CurateError for a URL that cannot be reached, or has files already: catalogs would write over each other's."""
    try:
        found = listed(at(url), "*")
    except OSError as error:
        raise CurateError(f"--files {url}: {error.strerror or error}: check the URL, who may write there, and the network"
                          ) from error  # fmt: skip
    if found:
        raise CurateError(f"--files {url}: files of others lie there, perhaps of another catalog: choose a new URL")


def remove(folder: Path) -> None:
    """Remove a remote folder with everything in it."""
    remote: Any = folder
    with contextlib.suppress(FileNotFoundError), reaching():
        remote.fs.rm(remote.path, recursive=True)


@contextlib.contextmanager
def local(files: Iterable[Path]) -> Iterator[list[Path]]:
    """The same files on this machine, for the block: as they are, or copies, under the same names. Raises OSError."""
    files = list(files)
    if not any(map(is_remote, files)):
        yield files
        return
    with scratch() as folder:
        copies = [folder / file.name for file in files]
        remote: Any = files[0]
        with reaching():
            remote.fs.get([cast(Any, file).path for file in files], [str(copy) for copy in copies])
        yield copies


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Clients of remote file systems raise what they like; callers know OSError only."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the boundary to other people's clients
        raise OSError(f"{type(error).__name__}: {error}") from error
