"""The catalog's database: opening it while others use it, and bringing an old one up to date."""

import re
import time
from pathlib import Path

import duckdb

from curate.catalog.sets import refresh_sample_scores
from curate.errors import CurateError
from curate.package_data import read_sql
from curate.progress import log

SCHEMA_VERSION = 8
TIMEOUT = 600.0  # seconds to wait while another process has the database open
_QUIET = 2.0  # seconds to wait without a message


class CatalogLockedError(CurateError):
    """Another process has had the database open for too long."""


def connect(path: Path, read_only: bool, timeout: float) -> duckdb.DuckDBPyConnection:
    """Open the database, waiting while another process commits or reads.

    Raises CatalogLockedError after `timeout` seconds, CurateError where it cannot be opened.
    """
    started, pause, has_warned = time.monotonic(), 0.01, False
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=read_only)
            connection.execute("set enable_progress_bar = false")  # it would write over ours
            return connection
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            holder = _lock_holder(str(error))
            if holder is None:
                reason = str(error).splitlines()[0]
                raise CurateError(f"cannot open '{path}': {reason}") from error
            waited = time.monotonic() - started
            if waited > timeout:
                raise CatalogLockedError(
                    f"{holder} keeps '{path}' open: close it there and try again"
                ) from error
        if waited > _QUIET and not has_warned:
            log.warning("waiting: %s has the catalog open", holder)
            has_warned = True
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _lock_holder(message: str) -> str | None:
    """Who holds the lock; None for another error. DuckDB tells the two apart by their text only."""
    if "Conflicting lock" in message:  # a holder that has just released it is called PID 0
        process = re.search(r"PID ([1-9]\d*)", message)
        return f"process {process.group(1)}" if process else "another process"
    if "different configuration" in message:
        return "this process, in another connection,"
    return None


def read_schema_version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema's version. Raises CurateError for what is no catalog, or a newer one."""
    try:
        ((schema_version,),) = connection.execute("select schema_version from meta").fetchall()
    except duckdb.CatalogException as error:
        raise CurateError(
            f"'{path}' holds a database that is no catalog: choose another folder with -c"
        ) from error
    if schema_version > SCHEMA_VERSION:
        raise CurateError(
            f"'{path}' was made by a newer curate (schema {schema_version}): "
            "upgrade with pip install -U"
        )
    return int(schema_version)


def is_empty(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the database has no table yet."""
    return not connection.execute("select 1 from duckdb_tables()").fetchall()


def create_schema(connection: duckdb.DuckDBPyConnection, files_url: str | None) -> None:
    """In an open transaction: the tables and views of a new catalog."""
    connection.execute(read_sql("schema"))
    connection.execute("insert into meta values (?, 0, ?)", [SCHEMA_VERSION, files_url])
    connection.execute(read_sql("views"))
    refresh_sample_scores(connection)


def upgrade_schema(connection: duckdb.DuckDBPyConnection, schema_version: int) -> None:
    """In an open transaction: bring the tables and views of an older version up to date.

    Migrations change the tables that the old version had; schema.sql adds those it had not.
    """
    if schema_version == SCHEMA_VERSION:
        return
    for number in range(schema_version + 1, SCHEMA_VERSION + 1):
        connection.execute(read_sql(f"migrations/{number}"))
    connection.execute(read_sql("schema"))
    connection.execute(read_sql("views"))
    refresh_sample_scores(connection)
    connection.execute("update meta set schema_version = ?", [SCHEMA_VERSION])
