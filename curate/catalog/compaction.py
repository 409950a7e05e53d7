"""Give the space of deleted rows back to the file system.

DuckDB keeps the blocks of deleted rows for later use, and gives back only those at the file's end.
So the tables are copied into a new file, which takes the old one's place in one step.
"""

import os
import time
from pathlib import Path

import duckdb

from curate.catalog.database import ALIAS, attach, start_duckdb
from curate.execution.limits import memory_limit
from curate.formatting import format_bytes
from curate.progress import log
from curate.storage.atomic import fsync, temporary_path

_LEAST_FREE = 0.1  # of the file: for less, the copy is not worth its time
_ATTEMPTS, _PAUSE = 20, 0.1  # seconds
_MEMORY = 1 << 30  # bytes


def compact(
    path: Path, is_for_newer_clients: bool = False, *, least_free: float = _LEAST_FREE
) -> bool:
    """Rewrite a database file without its free blocks, where they are `least_free` of it or more.

    Also where the file is for newer clients of DuckDB only: the copy is for older ones too. Where
    another connection has it open, or the disk has no room for the copy, the file stays as it is,
    with a message, and the answer is False: free blocks are used again.
    """
    copy = temporary_path(path)
    connection = start_duckdb(path)
    try:
        _attach_alone(connection, path)
        connection.execute("set enable_progress_bar = false")
        connection.execute(f"set memory_limit = '{min(_MEMORY, memory_limit() // 2) >> 20}MiB'")
        connection.execute(f"checkpoint {ALIAS}")
        ((block_size, num_blocks, num_free),) = connection.execute(
            "select block_size, total_blocks, free_blocks from pragma_database_size() "
            "where database_name = ?",
            [ALIAS],
        ).fetchall()
        if num_free < least_free * num_blocks and not is_for_newer_clients:
            return True
        attach(connection, copy, read_only=False, alias="compacted")
        connection.execute(f"copy from database {ALIAS} to compacted")
        connection.execute("checkpoint compacted")
        # Until the connection is closed it holds the locks of both files, so that nobody opens the
        # new one in between. No descriptor of either may be closed before: POSIX would drop them.
        os.replace(copy, path)
        if not is_for_newer_clients:
            log.info("the database file is %s smaller", format_bytes(num_free * block_size))
    except (duckdb.Error, OSError) as error:
        reason = str(error).splitlines()[0]
        log.warning("the database file stays as it is, it cannot be rewritten now: %s", reason)
        return False
    finally:
        connection.close()
        for leftover in (copy, copy.with_name(f"{copy.name}.wal")):
            leftover.unlink(missing_ok=True)
    fsync(path.parent)
    return True


def _attach_alone(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Open the file, waiting a little while others have it open. Raises duckdb.Error."""
    for _ in range(_ATTEMPTS):
        try:
            attach(connection, path, read_only=False)
            return
        except duckdb.Error:
            time.sleep(_PAUSE)
    attach(connection, path, read_only=False)
