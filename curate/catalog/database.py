"""The catalog's database: opening it while others use it, and bringing an old one up to date."""

import atexit
import os
import re
import struct
import threading
import time
from pathlib import Path

import duckdb

from curate.catalog.sets import refresh_sample_scores
from curate.catalog.sql import quote_literal
from curate.errors import CurateError
from curate.package_data import read_sql
from curate.progress import log

SCHEMA_VERSION = 11
TIMEOUT = 600.0  # seconds to wait while another process has the database open
_QUIET = 2.0  # seconds to wait without a message
ALIAS = "curate"  # of the file, for DuckDB
# What DuckDB 1.2 and later read. Unless asked, each version writes its own, refused by older ones.
_STORAGE_VERSION, _STORAGE_NUMBER = "v1.2.0", 65


class CatalogLockedError(CurateError):
    """Another process has had the database open for too long."""


class _OtherModeError(Exception):
    """This process has the file open, for reading where it is to be written or the reverse."""


class Database:
    """A database file, opened for the moment of a read or a commit.

    DuckDB takes 15 ms to start and 1 ms to attach a file. So it is started once and kept, without
    the file: other processes can have that as soon as nobody here reads or commits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._duckdb = start_duckdb(path)
        self._lock = threading.Lock()
        self._num_connections = 0
        self._read_only = True
        self.is_for_newer_clients = False  # looked at before the first connection

    def connect(self, read_only: bool, timeout: float) -> duckdb.DuckDBPyConnection:
        """A connection to the file, waiting while another process commits or reads.

        Give it back to `close`. Raises CatalogLockedError after `timeout` seconds, CurateError
        where the file cannot be opened.
        """
        started, pause, has_warned = time.monotonic(), 0.01, False
        while True:
            try:
                return self._connect(read_only)
            except (duckdb.Error, _OtherModeError) as error:
                holder = _lock_holder(error)
                if holder is None:
                    reason = str(error).splitlines()[0]
                    raise CurateError(f"cannot open '{self._path}': {reason}") from error
                waited = time.monotonic() - started
                if waited > timeout:
                    raise CatalogLockedError(
                        f"{holder} keeps '{self._path}' open: close it there and try again"
                    ) from error
            if waited > _QUIET and not has_warned:
                log.warning("waiting: %s has the catalog open", holder)
                has_warned = True
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    @property
    def is_open(self) -> bool:
        """Whether a connection holds the file."""
        return self._num_connections > 0

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self.is_open and read_only != self._read_only:
                raise _OtherModeError
            try:
                connection = self._duckdb.cursor()
                if not self.is_open:
                    attach(connection, self._path, read_only)
                    self._read_only = read_only
                connection.execute(f"use {ALIAS}")
                connection.execute("set enable_progress_bar = false")  # it would write over ours
            except duckdb.Error:  # the file is not attached
                raise
            except BaseException:  # Ctrl-C, which comes when DuckDB has attached the file
                if not self.is_open:
                    self._restart()
                raise
            self._num_connections += 1
            return connection

    def close(self, connection: duckdb.DuckDBPyConnection) -> None:
        """End a connection, and with the last one the hold on the file."""
        try:
            connection.close()
        finally:
            with self._lock:
                self._num_connections -= 1
                if not self.is_open:
                    self._detach()

    def _detach(self) -> None:
        try:
            self._duckdb.execute(f"detach {ALIAS}")
        except duckdb.Error:
            # On a full disk, what was committed stays in the log beside the file, and the next
            # opening takes it from there.
            self._restart()
        except BaseException:
            self._restart()
            raise

    def _restart(self) -> None:
        """Give the file up, whatever state it is in."""
        self._duckdb.close()
        self._duckdb = start_duckdb(self._path)


def start_duckdb(path: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB without a file of its own; what exceeds its memory goes beside `path`."""
    return duckdb.connect(config={"temp_directory": f"{path}.tmp"})


def attach(
    connection: duckdb.DuckDBPyConnection, path: Path, read_only: bool, alias: str = ALIAS
) -> None:
    """Open a file as the database that queries mean. Raises duckdb.Error."""
    options = "read_only" if read_only else "read_write"
    if not path.exists():  # that of an existing file cannot be changed
        options += f", storage_version '{_STORAGE_VERSION}'"
    file = quote_literal(str(path))
    while True:
        inode = _inode(path)
        connection.execute(f"attach {file} as {alias} (type duckdb, {options})")
        if inode in (None, _inode(path)):
            return
        connection.execute(f"detach {alias}")  # another has been put in its place meanwhile


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def is_for_newer_clients(path: Path) -> bool:
    """Whether the file is of a storage version that older DuckDB clients refuse.

    DuckDB documents the place of the number: the eight bytes after a checksum and "DUCK". Not for a
    file that this process has open: closing it here would give up DuckDB's lock (POSIX).
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return False
    magic, number = struct.unpack("<8x4sQ", header.ljust(20, b"\0"))
    return bool(magic == b"DUCK" and number > _STORAGE_NUMBER)


_databases: dict[Path, Database] = {}
_inherited: list[Database] = []  # a forked process has not the threads to use or to end them


def open_database(path: Path) -> Database:
    """The database of a file; the one that was used last is kept for the next time.

    Those that are open are kept too: a second handle of the same file would give up the lock of the
    first when it is closed (POSIX).
    """
    database = _databases.get(path)
    if database is None:
        for other in [other for other, kept in _databases.items() if not kept.is_open]:
            del _databases[other]
        database = _databases[path] = Database(path)
        database.is_for_newer_clients = is_for_newer_clients(path)
    return database


def _forget_inherited() -> None:
    _inherited.extend(_databases.values())
    _databases.clear()


os.register_at_fork(after_in_child=_forget_inherited)
atexit.register(_databases.clear)


def _lock_holder(error: Exception) -> str | None:
    """Who holds the lock; None for another error. DuckDB tells the two apart by their text only."""
    message = str(error)
    if "Conflicting lock" in message:  # a holder that has just released it is called PID 0
        process = re.search(r"PID ([1-9]\d*)", message)
        return f"process {process.group(1)}" if process else "another process"
    if isinstance(error, _OtherModeError) or "Unique file handle conflict" in message:
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
