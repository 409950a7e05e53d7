"""The catalog's database: opening it while others use it, and bringing an old one up to date."""

import re
import time
from pathlib import Path

import duckdb

from curate import resources, sets
from curate.errors import CurateError
from curate.progress import log

SCHEMA_VERSION = 6
PATIENCE = 600.0  # seconds to wait while another process has the database open


class Busy(CurateError):
    """Another process has had the database open for too long."""


def connect(path: Path, read_only: bool, patience: float) -> duckdb.DuckDBPyConnection:
    """Open the database, waiting while another process commits or reads."""
    begin, pause, told = time.monotonic(), 0.01, False
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=read_only)
            connection.execute("set enable_progress_bar = false")  # it would write over ours
            return connection
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if "Conflicting lock" in str(error):  # a holder that has just let go is called PID 0
                holder = re.search(r"PID ([1-9]\d*)", str(error))
                who = f"process {holder.group(1)}" if holder else "another process"
            elif "different configuration" in str(error):
                who = "this process, in another connection,"
            else:
                raise CurateError(f"cannot open '{path}': {str(error).splitlines()[0]}") from error
            waited = time.monotonic() - begin
            if waited > patience:
                raise Busy(f"{who} keeps '{path}' open: close it there and try again") from error
        if waited > 2 and not told:
            log.warning("waiting: %s has the catalog open", who)
            told = True
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema's version. Raises CurateError for a database that is no catalog, or a newer one."""
    try:
        ((found,),) = connection.execute("select schema_version from meta").fetchall()
    except duckdb.CatalogException as error:
        raise CurateError(f"'{path}' holds a database that is no catalog: choose another folder with -c") from error
    if found > SCHEMA_VERSION:
        raise CurateError(f"'{path}' was made by a newer curate (schema {found}): upgrade with pip install -U")
    return int(found)


def upgrade(connection: duckdb.DuckDBPyConnection, old: int) -> None:
    """In an open transaction: bring the tables and views of an older version up to date."""
    for number in range(old + 1, SCHEMA_VERSION + 1):
        connection.execute(resources.sql(f"migrations/{number}"))
    if old < SCHEMA_VERSION:
        connection.execute(resources.sql("views"))
        sets.refresh_sample_scores(connection)
        connection.execute("update meta set schema_version = ?", [SCHEMA_VERSION])
