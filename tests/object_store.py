"""An S3-compatible server on the loopback, which may fail every so many requests.

python object_store.py FAIL_EVERY      prints its port
"""

import itertools
import sys
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class FailingServer:
    """A server that answers each `fail_every`-th request with 503, as S3 does when overloaded."""

    def __init__(self, server: Any, fail_every: int) -> None:
        self.server, self.fail_every = server, fail_every
        self.requests = itertools.count(1)

    def __call__(self, environment: dict[str, Any], respond: Any) -> Iterable[bytes]:
        if self.fail_every and next(self.requests) % self.fail_every == 0:
            if length := int(environment.get("CONTENT_LENGTH") or 0):
                environment["wsgi.input"].read(length)
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))]
            respond("503 Slow Down", headers)
            return [SLOW_DOWN]
        return self.server(environment, respond)


class QuietHandler(WSGIRequestHandler):
    def log(self, *words: Any) -> None:
        pass


if __name__ == "__main__":
    app = FailingServer(DomainDispatcherApplication(create_backend_app), int(sys.argv[1]))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    print(server.port, flush=True)
    server.serve_forever()
