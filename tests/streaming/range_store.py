"""A store that speaks as much of S3 as reading takes, and counts requests and bytes."""

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class RangeStore(http.server.ThreadingHTTPServer):
    """Serves the files of a folder as the objects of a bucket `corpus`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.lock = threading.Lock()
        self.num_requests = 0
        self.num_bytes = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeStore

    def do_GET(self) -> None:
        path = self.server.folder / self.path.partition("?")[0].removeprefix("/corpus/")
        if not path.is_file():
            error = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
            self.answer(404, error, {"Content-Type": "application/xml"})
            return
        start, last = 0, path.stat().st_size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, last = int(asked[1]), min(last, int(asked[2] or last))
        if start > last:
            error = b"<?xml version='1.0'?><Error><Code>InvalidRange</Code></Error>"
            self.answer(416, error, {"Content-Type": "application/xml"})
            return
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(last - start + 1)
        total = path.stat().st_size
        self.answer(206, data, {"Content-Range": f"bytes {start}-{last}/{total}", "ETag": '"1"'})

    def do_HEAD(self) -> None:
        path = self.server.folder / self.path.partition("?")[0].removeprefix("/corpus/")
        self.send_response(200 if path.is_file() else 404)
        length = path.stat().st_size if path.is_file() else 0
        for name, value in {"Content-Length": str(length), "ETag": '"1"'}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        with self.server.lock:
            self.server.num_requests += 1
            self.server.num_bytes += len(data)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


@contextlib.contextmanager
def serve_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeStore]:
    """The store, as s3://corpus of this process."""
    import s3fs

    store = RangeStore(folder)
    threading.Thread(target=store.serve_forever, args=[0.01], daemon=True).start()
    address = f"http://127.0.0.1:{store.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        store.shutdown()
        store.server_close()
