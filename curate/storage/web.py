"""Files on web servers: read front to back, whatever the server's habits are.

Servers may know no byte ranges, cut an answer short, be overloaded for a moment, name no size, or
refuse HEAD, as signed URLs do. Requests are made by aiohttp, which honours `http_proxy` and its
like, on fsspec's event loop.
"""

import contextlib
import errno
import http
import io
import itertools
import os
import random
import re
import ssl
from collections.abc import Callable, Coroutine
from time import sleep as _sleep
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from curate.storage.credentials import reveal_credentials

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Result = TypeVar("Result")

SCHEMES = ("http", "https")
_OVERLOADED = (408, 425, 429, 500, 502, 503, 504)
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
# As many tries as the S3 client makes; the pauses are 0.25 s, 0.5 s, 1 s … and 92 s together.
_TRIES, _FIRST_PAUSE, _LONGEST_PAUSE = 10, 0.25, 30.0
_CONNECTION_TRIES = 3  # where nobody answers, a long wait helps rarely
_CONNECT_TIMEOUT, _READ_TIMEOUT = 20.0, 60.0  # seconds
_BUFFER = 4 << 20  # bytes that are fetched ahead of the reader
_LONGEST_REASON = 100  # characters of a library's message, which may quote the body
_LONGEST_SKIP = 1 << 20  # bytes: reading over them costs less than another request


class _Answer(NamedTuple):
    """An answer whose body is still to be read. `stop` is where the file ends, if it is known."""

    response: Any
    start: int
    stop: int | None


def is_web_url(location: str) -> bool:
    """Whether a location is on a web server."""
    return location.partition("://")[0].lower() in SCHEMES


def stat(url: str) -> tuple[int | None, str]:
    """What the server says of a file: its bytes, None where it does not say; ETag or date, or "".

    Raises OSError, which names the status or the cause.
    """
    answer = None
    with contextlib.suppress(_NoHttpError):  # some servers answer HEAD with a body
        answer = _request(url, "HEAD", {})
    if answer is None or answer.status >= 400:  # signed URLs are for GET alone
        if answer is not None:
            answer.close()
        answer = _request(url, "GET", {"Range": "bytes=0-0"})
    try:
        if answer.status != 416:  # there is no byte 0: an empty file
            _check_status(answer)
        etag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        return _total_size(answer), etag.removeprefix("W/")
    finally:
        answer.close()


def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file; fewer where it ends before. Raises OSError.

    In one request, where the server knows byte ranges and does not cut its answer.
    """
    data = b""
    with WebFile(url, start, stop) as file:
        while len(data) < stop - start and (more := file.read(stop - start - len(data))):
            data += more
    return data


class WebFile(io.RawIOBase):
    """A file of a web server. What is cut is asked for again from there on, with growing pauses.

    Seeking forwards takes a byte range or, where the server knows none, reads over the gap.
    Reading begins at `start`, and no byte from `stop` on is asked for. Raises OSError.
    """

    def __init__(self, url: str, start: int = 0, stop: int | None = None) -> None:
        super().__init__()
        self._url, self._position = url, start
        self._last_byte = "" if stop is None else str(stop - 1)
        self._answer: _Answer | None = None
        self._size: int | None = None  # where the server says it
        self._has_ranges = True  # until the server shows that it has none
        self._open(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence not in (io.SEEK_SET, io.SEEK_CUR):
            raise io.UnsupportedOperation("a web server may not say where the file ends")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._retry(lambda: self._read(len(view)))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _retry(self, read: Callable[[], bytes]) -> bytes:
        for number in itertools.count(1):
            try:
                return read()
            except _Interrupted as error:
                self._drop()
                if number == _TRIES:
                    raise OSError(errno.EIO, str(error)) from None
                _pause(number)
        raise AssertionError

    def _read(self, count: int) -> bytes:
        """The next bytes, at least one unless the file ends here. Raises _Interrupted."""
        if self._answer is None or self._is_far(self._answer.start):
            self._open(self._position)
        while self._answer is not None and self._answer.start < self._position:
            if not self._receive(min(self._position - self._answer.start, _BUFFER)):
                return b""  # the file ends before
        return self._receive(count)

    def _is_far(self, start: int) -> bool:
        """Whether another request is better than to read on from `start`."""
        gap = self._position - start
        return gap < 0 or (gap > _LONGEST_SKIP and self._has_ranges)

    def _receive(self, count: int) -> bytes:
        """Bytes from where the answer is, which is moved; the position too, once it is reached."""
        answer = self._answer
        if answer is None:
            return b""
        data: bytes = _run(lambda: answer.response.content.read(count))
        if not data and answer.stop is not None and answer.start < answer.stop:
            raise _Interrupted(f"the server cut its answer at byte {answer.start:,}")
        if answer.start == self._position:
            self._position += len(data)
        self._answer = answer._replace(start=answer.start + len(data))
        return data

    def _open(self, position: int) -> None:
        """Ask for the file from a position on; without ranges, the answer starts at byte 0."""
        headers = {}
        if (position or self._last_byte) and self._has_ranges:
            headers = {"Range": f"bytes={position}-{self._last_byte}"}
        response = _request(self._url, "GET", headers)
        if headers:
            self._has_ranges = response.status in (206, 416)
        if not self._has_ranges and self._answer and self._answer.start <= position:
            response.close()  # the answer that is open is nearer
            return
        self._drop()
        if response.status == 416:  # nothing is there
            response.close()
            return
        start = _range_start(response) if response.status == 206 else 0
        self._answer = _Answer(response, start, _total_size(response))
        _check_status(response)
        encoding = response.headers.get("Content-Encoding", "").lower()
        if encoding not in _ENCODINGS:
            raise OSError(errno.EIO, f"the server sends it compressed by {encoding}, not as it is")
        if self._size is not None and self._answer.stop not in (None, self._size):
            raise OSError(errno.EIO, "it changed while it was read")
        self._size = self._answer.stop

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.response.close()
            self._answer = None


class _NoHttpError(OSError):
    """An answer that is not as HTTP wants it."""


class _Interrupted(Exception):
    """A request failed in a way that may pass; the text says how."""


def _request(url: str, method: str, headers: dict[str, str]) -> Any:
    """The server's answer, whose body is not read yet; overloaded servers are asked again.

    Raises OSError where there is no answer.
    """
    for number in itertools.count(1):
        try:
            response = _run(lambda: _send(url, method, headers))
        except _Interrupted as error:
            if number == _CONNECTION_TRIES:
                raise OSError(errno.EIO, str(error)) from None
            _pause(number)
            continue
        if response.status not in _OVERLOADED or number == _TRIES:
            return response
        response.close()
        _pause(number, response.headers.get("Retry-After", ""))
    raise AssertionError


async def _send(url: str, method: str, headers: dict[str, str]) -> Any:
    import aiohttp
    import yarl

    # A signed URL is sent as it is: another spelling of its query would have another signature.
    address = reveal_credentials(url)
    is_encoded = address.isascii() and re.search(r"[\s\"<>\\^`{|}]", address) is None
    session = await _filesystem().set_session()
    return await session.request(
        method,
        yarl.URL(address, encoded=is_encoded),
        headers={"Accept-Encoding": "identity", **headers},
        allow_redirects=True,
        read_bufsize=_BUFFER,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT
        ),
    )


def _run(start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """The result of a coroutine on fsspec's event loop.

    Raises _Interrupted for what may pass, and OSError, without the URL, for what may not.
    """
    import aiohttp
    from fsspec.asyn import sync

    async def run() -> Result:
        return await start()

    try:
        return sync(_filesystem().loop, run)  # type: ignore[no-any-return]
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
        text = getattr(reason, "verify_message", "") or getattr(reason, "reason", "") or "TLS"
        problem = f"its certificate is not trusted: {text}"
        if not isinstance(error, aiohttp.ClientConnectorCertificateError):
            problem = f"no secure connection: {text}"
        raise OSError(errno.EIO, problem) from None
    except (aiohttp.InvalidURL, ValueError):
        raise OSError(errno.EINVAL, "it is no URL") from None
    except aiohttp.ClientConnectorDNSError:
        raise _Interrupted("no such host") from None
    except aiohttp.ClientConnectorError as error:
        raise _Interrupted(os.strerror(error.os_error.errno or errno.EIO).lower()) from None
    except TimeoutError:
        raise _Interrupted("no answer in time") from None
    except aiohttp.TooManyRedirects:
        raise OSError(errno.EIO, "it is redirected without end") from None
    except aiohttp.ClientResponseError as error:  # also a proxy's refusal, and what is no HTTP
        reason = (error.message.splitlines() or [""])[0][:_LONGEST_REASON]
        raise _NoHttpError(errno.EIO, f"{error.status} {reason}".strip()) from None
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
        raise _Interrupted("the server cut its answer") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _Interrupted(f"the connection was lost ({type(error).__name__})") from None


def _filesystem() -> Any:
    """fsspec's client, one in each process."""
    import fsspec

    return fsspec.filesystem("http", client_kwargs={"trust_env": True})


def _check_status(response: Any) -> None:
    """OSError, of the fitting kind, for an answer that is no file."""
    status: int = response.status
    if status < 400:
        return
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "an unknown status"
    code = {
        401: errno.EACCES,
        403: errno.EACCES,
        404: errno.ENOENT,
        407: errno.EACCES,
        410: errno.ENOENT,
    }.get(status, errno.EIO)
    raise OSError(code, f"{status} {phrase}")


def _total_size(response: Any) -> int | None:
    """The bytes of the whole file, by an answer with it or with a part of it."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None  # what is counted are the compressed bytes
    content_range = re.search(r"/(\d+)\s*$", response.headers.get("Content-Range", ""))
    if content_range:
        return int(content_range.group(1))
    length: str = response.headers.get("Content-Length", "")
    return int(length) if response.status == 200 and length.isdecimal() else None


def _range_start(response: Any) -> int:
    match = re.search(r"bytes\s+(\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else 0


def _pause(number: int, retry_after: str = "") -> None:
    """Wait before the next try: longer each time, or as long as the server asks for."""
    pause = min(_FIRST_PAUSE * 2 ** (number - 1), _LONGEST_PAUSE)
    if retry_after.isdecimal():
        pause = min(max(pause, int(retry_after)), _LONGEST_PAUSE)
    _sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - so that workers do not ask at once
