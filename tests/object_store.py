"""An S3-compatible server on the loopback, which may fail every so many requests.

python object_store.py FAIL_EVERY      prints its port
"""

import itertools
import sys
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Failing:
    """The server, which answers every so manieth request with 503, as S3 does when it is asked too much."""

    def __init__(self, server: Any, every: int) -> None:
        self.server, self.every, self.requests = server, every, itertools.count(1)

    def __call__(self, environment: dict[str, Any], respond: Any) -> Iterable[bytes]:
        if self.every and next(self.requests) % self.every == 0:
            if length := int(environment.get("CONTENT_LENGTH") or 0):
                environment["wsgi.input"].read(length)
            respond("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN]
        return self.server(environment, respond)


class Quiet(WSGIRequestHandler):
    def log(self, *words: Any) -> None:
        pass


if __name__ == "__main__":
    app = Failing(DomainDispatcherApplication(create_backend_app), int(sys.argv[1]))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    server.serve_forever()
