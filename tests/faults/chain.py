"""The whole chain in one process, which can be told to kill itself at a commit point.

    python chain.py CATALOG OUT WORKERS KILL_AT SHARD...

Commit points are counted where files get or lose their names, before and after, and around every
commit of the database; at the one numbered KILL_AT, from 0, the process dies by SIGKILL. Without a
kill it prints how many points there are.
"""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

passed: list[str] = []  # the commit points so far
kill_at = -1


def point(name: str) -> None:
    passed.append(name)
    if len(passed) - 1 == kill_at:
        kill_self()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def with_points(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        point(f"before {name}")
        result = function(*args, **options)
        point(f"after {name}")
        return result

    return wrapped


class Connection:
    """A database connection whose commits are points: before, during and after."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def cursor(self) -> "Connection":
        return Connection(self._plain.cursor())

    def execute(self, text: str, *args: Any) -> Any:
        if text != "commit":
            return self._plain.execute(text, *args)
        point("before commit")
        if len(passed) == kill_at:  # the next point: die while the commit is under way
            timer = threading.Timer((kill_at * 0.37e-3) % 3e-3, kill_self)
            timer.daemon = True
            timer.start()
        result = self._plain.execute(text, *args)
        point("during commit")
        point("after commit")
        return result


def add_points() -> None:
    """Count and kill where the package commits; nothing in the package knows of it."""
    os.replace = with_points(os.replace, "rename")
    os.rename = with_points(os.rename, "rename of a folder")
    os.link = with_points(os.link, "link")
    os.unlink = with_points(os.unlink, "unlink")
    Path.unlink = with_points(Path.unlink, "unlink")  # type: ignore[method-assign]
    shutil.rmtree = with_points(shutil.rmtree, "rmtree")  # type: ignore[assignment]
    connect = duckdb.connect
    duckdb.connect = lambda *args, **options: Connection(connect(*args, **options))  # type: ignore[assignment]


def main(catalog: str, out: str, workers: int, shards: list[str]) -> None:
    from curate.stages.cluster.stage import cluster
    from curate.stages.embed.stage import embed
    from curate.stages.export.stage import export
    from curate.stages.probe.stage import probe
    from curate.stages.score.stage import score
    from curate.stages.select.stage import select
    from curate.stages.validate.stage import validate

    embed(catalog, shards, encoder="pixels", captions=True, workers=workers)
    cluster(catalog, k=4, workers=workers)
    probe(catalog, model="ridge")
    score(catalog, ["ssl_prototypes", "random"], workers=workers)
    select(catalog, keep=0.6, name="kept")
    export(catalog, "kept", Path(out) / "mirror", workers=workers)
    export(catalog, "kept", Path(out) / "repacked", samples_per_shard=40, workers=workers)
    validate(catalog, ["kept"], model="linear", seeds=2, epochs=1)
    select(catalog, keep=0.4, scoring="random", name="less")
    validate(catalog, ["less"], model="linear", seeds=3, epochs=1)  # which grows


if __name__ == "__main__":
    kill_at = int(sys.argv[4])
    add_points()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[5:])
    print(len(passed))
