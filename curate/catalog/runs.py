"""The table of runs: runs whose process ended without saying so."""

import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def find_killed(connection: "duckdb.DuckDBPyConnection") -> list[int]:
    """The runs of this host that are called running and whose process has ended."""
    rows = connection.execute(
        "select run_id, process from runs where status = 'running' and host = ?", [platform.node()]
    ).fetchall()
    return [run_id for run_id, process in rows if not _pid_exists(process)]


def mark_killed(connection: "duckdb.DuckDBPyConnection") -> None:
    """In an open transaction: give these runs the status killed."""
    connection.execute(
        "update runs set status = 'killed' where run_id in (select unnest(?))",
        [find_killed(connection)],
    )


def _pid_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True
