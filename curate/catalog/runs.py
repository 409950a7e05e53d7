"""The table of runs: which are under way, and those whose process ended without saying so."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import duckdb

_START_FIELD = 19  # of /proc/PID/stat, from the field after the name: proc(5), starttime


class RunningProcess(NamedTuple):
    """A run that is under way."""

    run_id: int
    stage: str
    name: str
    host: str
    process: int


def find_killed(connection: "duckdb.DuckDBPyConnection") -> list[int]:
    """The runs of this host that are called running and whose process has ended."""
    rows = connection.execute(
        "select run_id, process, process_start from runs where status = 'running' and host = ?",
        [platform.node()],
    ).fetchall()
    return [run_id for run_id, process, start in rows if not _is_running(process, start)]


def mark_killed(connection: "duckdb.DuckDBPyConnection") -> None:
    """In an open transaction: give these runs the status killed."""
    connection.execute(
        "update runs set status = 'killed' where run_id in (select unnest(?))",
        [find_killed(connection)],
    )


def list_running(
    connection: "duckdb.DuckDBPyConnection", names: list[str], parent_run_ids: list[int]
) -> list[RunningProcess]:
    """The runs under way that make a set of one of these names, or read what these runs made."""
    rows = connection.execute(
        "select run_id, stage, name, coalesce(host, ''), coalesce(process, 0) from runs "
        "where status = 'running' and (name in (select unnest($names)) "
        "or list_has_any(parent_run_ids, $parents)) order by run_id",
        {"names": names, "parents": parent_run_ids},
    ).fetchall()
    return [RunningProcess(*row) for row in rows]


def process_start(process: int) -> int | None:
    """When a process started, in clock ticks since the machine's start; None where unknown.

    With its id it tells a process from a later one, whatever becomes of the clock.
    """
    try:
        status = Path(f"/proc/{process}/stat").read_text()
        return int(status.rpartition(")")[2].split()[_START_FIELD])
    except (OSError, ValueError, IndexError):  # no such process, or another operating system
        return None


def _is_running(process: int, start: int | None) -> bool:
    """Whether a process exists, and is the one that started then."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        pass
    return start is None or process_start(process) in (None, start)
