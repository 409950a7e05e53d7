"""An S3-compatible server in this process that counts the requests it gets."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from object_store import QuietHandler
from werkzeug.serving import make_server


class CountingServer:
    """Counts requests by the kind of operation and the bucket, as `LIST corpus`."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, environment: dict[str, Any], respond: Any) -> Iterable[bytes]:
        bucket, _, key = environment["PATH_INFO"].lstrip("/").partition("/")
        operation = environment["REQUEST_METHOD"]
        if operation == "GET" and not key:
            operation = "LIST"
        with self.lock:
            self.counts[f"{operation} {bucket}"] += 1
        return self.app(environment, respond)

    @contextlib.contextmanager
    def count(self) -> Iterator[Counter[str]]:
        """The requests of the block."""
        before = self.counts.copy()
        counts: Counter[str] = Counter()
        yield counts
        counts.update(self.counts - before)


@contextlib.contextmanager
def serve_counting_store(
    buckets: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CountingServer]:
    """A server with empty buckets, as s3:// of this process and of those that it starts."""
    import fsspec
    import s3fs

    store = CountingServer()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=QuietHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for bucket in buckets:
            fsspec.filesystem("s3").mkdir(bucket)
        yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
