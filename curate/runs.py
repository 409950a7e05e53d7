"""The books of what ran: runs that did not come to their own end."""

import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def killed(connection: "duckdb.DuckDBPyConnection") -> list[int]:
    """The runs of this host that are called running and whose process is gone."""
    rows = connection.execute(
        "select run_id, process from runs where status = 'running' and host = ?", [platform.node()]
    ).fetchall()
    return [run_id for run_id, process in rows if not _lives(process)]


def mark_killed(connection: "duckdb.DuckDBPyConnection") -> None:
    """Call them killed, in an open transaction."""
    connection.execute("update runs set status = 'killed' where run_id in (select unnest(?))", [killed(connection)])


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True
