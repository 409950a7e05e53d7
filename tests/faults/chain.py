"""The whole chain in one process, which can be told to kill itself at a commit point.

    python chain.py CATALOG OUT WORKERS KILL_AT SHARD...

Commit points are counted where files get or lose their names, before and after, and around every commit of the database;
at one KILL_AT, from 0, the process dies by SIGKILL. Without a kill it prints how many points there are.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

passed: list[str] = []
kill_at = -1


def point(name: str) -> None:
    passed.append(name)
    if len(passed) - 1 == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def around(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **options: Any) -> Any:
        point(f"before {name}")
        result = function(*args, **options)
        point(f"after {name}")
        return result

    return wrapped


class Connection:
    """A database connection whose commits are points: before, amid and after."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def execute(self, text: str, *args: Any) -> Any:
        if text != "commit":
            return self._plain.execute(text, *args)
        point("before commit")
        if len(passed) == kill_at:  # the next point: die while the commit is on its way
            delay = (kill_at * 0.37e-3) % 3e-3
            threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
        result = self._plain.execute(text, *args)
        point("amid commit")
        point("after commit")
        return result


def watch() -> None:
    """Count and kill where the package commits; nothing in the package knows of it."""
    os.replace = around(os.replace, "rename")
    os.unlink = around(os.unlink, "unlink")
    Path.unlink = around(Path.unlink, "unlink")  # type: ignore[method-assign]
    shutil.rmtree = around(shutil.rmtree, "rmtree")  # type: ignore[assignment]
    connect = duckdb.connect
    duckdb.connect = lambda *args, **options: Connection(connect(*args, **options))  # type: ignore[assignment]


def main(catalog: str, out: str, workers: int, shards: list[str]) -> None:
    from curate.stages.cluster import cluster
    from curate.stages.embed import embed
    from curate.stages.export import export
    from curate.stages.probe import probe
    from curate.stages.score import score
    from curate.stages.select import select

    embed(catalog, shards, encoder="pixels", workers=workers)
    cluster(catalog, k=4, workers=workers)
    probe(catalog, model="ridge")
    score(catalog, ["ssl_prototypes", "random"], workers=workers)
    select(catalog, keep=0.6, name="kept")
    export(catalog, "kept", Path(out) / "mirror", workers=workers)
    export(catalog, "kept", Path(out) / "repacked", samples_per_shard=40, workers=workers)


if __name__ == "__main__":
    kill_at = int(sys.argv[4])
    watch()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[5:])
    print(len(passed))
