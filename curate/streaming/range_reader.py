"""Byte ranges of many shards, one after the other, with the next ones on their way.

On a disk of this machine the system is told what comes next, and reads it while samples are
decoded. From stores and web servers, threads fetch side by side.
"""

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self

from curate.errors import CurateError
from curate.storage import files

# How far ahead: enough small requests to hide the time until a store answers, and few large ones.
MAX_REQUESTS = 32
MAX_BYTES = 16 << 20
_MAX_OPEN_FILES = 64


class RangeRequest(NamedTuple):
    """The bytes [start, stop) of a shard, which has `shard_bytes` bytes, or -1 if unknown."""

    url: str
    start: int
    stop: int
    shard_bytes: int


class MissingShardError(CurateError):
    """A shard that does not exist."""


Pending = Callable[[], bytes]  # the result of a request, which may still be waited for


class RangeReader:
    """Reads ranges in the order in which they are asked for. To be closed.

    `root` maps the shard's URL to where it is read from.
    """

    def __init__(self, locate: Callable[[str], str]) -> None:
        self._locate = locate
        self._descriptors: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, requests: Iterable[RangeRequest]) -> Iterator[bytes | MissingShardError]:
        """The bytes of each request, or that its shard is missing.

        Raises CurateError for a shard that has changed or cannot be read.
        """
        waiting: collections.deque[tuple[RangeRequest, Pending]] = collections.deque()
        num_bytes = 0
        for request in requests:
            waiting.append((request, self._start(request)))
            num_bytes += request.stop - request.start
            while len(waiting) >= MAX_REQUESTS or num_bytes >= MAX_BYTES:
                earliest, pending = waiting.popleft()
                num_bytes -= earliest.stop - earliest.start
                yield self._finish(earliest, pending)
        while waiting:
            yield self._finish(*waiting.popleft())

    def _start(self, request: RangeRequest) -> Pending:
        location = self._locate(request.url)
        if not files.is_url(location):
            with contextlib.suppress(OSError):  # it is met again when the bytes are needed
                self._advise(self._open(location, request), request)
            return lambda: self._read_local(location, request)
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(MAX_REQUESTS)
        length = request.stop - request.start
        return self._threads.submit(files.read_range, location, request.start, length).result

    def _finish(self, request: RangeRequest, pending: Pending) -> bytes | MissingShardError:
        try:
            data = pending()
        except FileNotFoundError:
            return MissingShardError(
                f"'{request.url}' is gone: put it back, give root= where it is elsewhere, or leave "
                "out its samples with allow_missing=True"
            )
        except OSError as error:
            self._check_size(request)
            raise CurateError(
                f"'{request.url}' cannot be read ({error.strerror or error}): see to it that this "
                "machine may read it, then try again"
            ) from error
        if len(data) != request.stop - request.start:
            raise changed_shard(request.url, f"it ends at byte {request.start + len(data):,}")
        return data

    def _check_size(self, request: RangeRequest) -> None:
        """CurateError where a shard has another size, which stores answer in their own ways."""
        with contextlib.suppress(OSError):
            num_bytes = files.stat(self._locate(request.url)).num_bytes
            if request.shard_bytes != -1 and num_bytes not in (None, request.shard_bytes):
                raise _changed_size(request, num_bytes)

    def _open(self, location: str, request: RangeRequest) -> int:
        """The file's descriptor, of which some are kept. Raises OSError, and CurateError."""
        if location in self._descriptors:
            self._descriptors.move_to_end(location)
            return self._descriptors[location]
        num_bytes = files.check_regular(location).st_size
        if request.shard_bytes not in (-1, num_bytes):
            raise _changed_size(request, num_bytes)
        descriptor = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors[location] = descriptor
        if len(self._descriptors) > _MAX_OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def _advise(self, descriptor: int, request: RangeRequest) -> None:
        if hasattr(os, "posix_fadvise"):
            length = request.stop - request.start
            os.posix_fadvise(descriptor, request.start, length, os.POSIX_FADV_WILLNEED)

    def _read_local(self, location: str, request: RangeRequest) -> bytes:
        descriptor, missing = self._open(location, request), request.stop - request.start
        data = os.pread(descriptor, missing, request.start)
        while len(data) < missing:  # a single call reads at most 2 GiB
            more = os.pread(descriptor, missing - len(data), request.start + len(data))
            if not more:
                break
            data += more
        return data


def changed_shard(url: str, reason: str) -> CurateError:
    """The error for a shard that is not the one that was embedded."""
    return CurateError(
        f"'{url}' has changed since it was embedded ({reason}): restore it, or embed the new "
        "corpus and select from it"
    )


def _changed_size(request: RangeRequest, num_bytes: int | None) -> CurateError:
    return changed_shard(
        request.url, f"it has {num_bytes:,} bytes in place of {request.shard_bytes:,}"
    )
