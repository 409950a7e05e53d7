"""The catalog: a folder with `catalog.duckdb` for narrow tables and Parquet files for vectors.

The database is opened only for the moment of a read or a commit, so that people and other
processes can query it while a long stage runs.
"""

import contextlib
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import duckdb

from curate import provenance, resources, sets
from curate.atomic import locked, workspace
from curate.errors import CurateError
from curate.progress import log

SCHEMA_VERSION = 3
PATIENCE = 600.0  # seconds to wait while another process has the database open


class Busy(CurateError):
    """Another process has had the database open for too long."""


class Catalog:
    """A catalog folder. Opening one reads nothing; `create` makes it where it is missing."""

    def __init__(self, path: "str | Path | Catalog") -> None:
        self.path: Path = path.path if isinstance(path, Catalog) else Path(path).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Catalog({str(self.path)!r})"

    @property
    def database(self) -> Path:
        return self.path / "catalog.duckdb"

    def embedding_folder(self, embedding: str) -> Path:
        return self.path / "embeddings" / embedding

    def vector_file(self, embedding: str, shard_id: int) -> Path:
        return self.embedding_folder(embedding) / f"{shard_id:08d}.parquet"

    def vector_files(self, embedding: str) -> dict[Path, int]:
        """The Parquet files of an embedding that are in the catalog, in the order of the shards, with their rows."""
        with self.reading() as connection:
            rows = connection.execute(
                "select shard_id, num_embedded from embedded_shards where embedding = ? and num_embedded > 0 order by shard_id",
                [embedding],
            ).fetchall()
        return {self.vector_file(embedding, shard_id): count for shard_id, count in rows}

    def centroid_file(self, clustering: dict[str, Any]) -> Path:
        """Where the centroids of a clustering (its head row) lie."""
        return self.path / "clusterings" / str(clustering["centroids"])

    def probe_folder(self, probe: dict[str, Any]) -> Path:
        """Where the parts of a probe (its head row) lie."""
        return self.path / "probes" / str(probe["folder"])

    # -- opening ---------------------------------------------------------------------------------

    def create(self) -> Self:
        """Make the folder and the tables where they are missing. Raises CurateError."""
        if re.search(r"[*?\[]", str(self.path)):  # DuckDB would read the paths of the vectors as patterns
            raise CurateError(f"a catalog cannot lie at '{self.path}': choose a path without * ? and [ with -c")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CurateError(f"cannot make the catalog '{self.path}': {error.strerror}; choose a folder with -c") from error
        with self._connection(read_only=False) as connection:
            if not connection.execute("select 1 from duckdb_tables()").fetchall():
                connection.execute("begin")
                connection.execute(resources.sql("schema"))
                connection.execute(resources.sql("views"))
                sets.refresh_sample_scores(connection)
                connection.execute("commit")
            _version(connection, self.path)
        return self

    @contextlib.contextmanager
    def reading(self, *, guarded: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; `guarded` also shuts out every file but the catalog's own vectors."""
        self._check_exists()
        with self._connection(read_only=True) as connection:
            if _version(connection, self.path) == SCHEMA_VERSION:
                connection.execute("set variable catalog = ?", [str(self.path)])
                if guarded:
                    connection.execute(f"set allowed_directories = [{sets.literal(str(self.path / 'embeddings'))}]")
                    connection.execute("set enable_external_access = false")
                    connection.execute("set lock_configuration = true")
                yield connection
                return
        with self.writing():  # brings the catalog up to date
            pass
        with self.reading(guarded=guarded) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, patience: float = PATIENCE) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed when the block ends well, undone when it does not. Raises Busy after `patience` s."""
        self._check_exists()
        with self._connection(read_only=False, patience=patience) as connection:
            old = _version(connection, self.path)
            connection.execute("begin")
            try:
                _upgrade(connection, old)
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    def _check_exists(self) -> None:
        if not self.database.is_file():
            raise CurateError(f"no catalog at '{self.path}': make one with `curate embed SHARDS -c {self.path}`")

    @contextlib.contextmanager
    def _connection(self, *, read_only: bool, patience: float = PATIENCE) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._connect(read_only, patience)
        try:
            yield connection
        finally:
            connection.close()

    def _connect(self, read_only: bool, patience: float) -> duckdb.DuckDBPyConnection:
        """Open the database, waiting while another process commits or reads."""
        begin, pause, told = time.monotonic(), 0.01, False
        while True:
            try:
                return duckdb.connect(str(self.database), read_only=read_only)
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                if "Conflicting lock" in str(error):  # a holder that has just let go is called PID 0
                    holder = re.search(r"PID ([1-9]\d*)", str(error))
                    who = f"process {holder.group(1)}" if holder else "another process"
                elif "different configuration" in str(error):
                    who = "this process, in another connection,"
                else:
                    raise CurateError(f"cannot open '{self.database}': {str(error).splitlines()[0]}") from error
                waited = time.monotonic() - begin
                if waited > patience:
                    raise Busy(f"{who} keeps '{self.database}' open: close it there and try again") from error
            if waited > 2 and not told:
                log.warning("waiting: %s has the catalog open", who)
                told = True
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    # -- sets ------------------------------------------------------------------------------------

    def head(self, kind: str, name: str) -> dict[str, Any] | None:
        """The head row of a set, or None."""
        with self.reading() as connection:
            return sets.head(connection, kind, name)

    def names(self, kind: str) -> list[str]:
        """The names of all sets of a kind, oldest first."""
        with self.reading() as connection:
            return sets.names(connection, kind)

    def require(self, kind: str, name: str | None) -> dict[str, Any]:
        """The head row of a set; of the only one where no name is given. CurateError says how to make it."""
        with self.reading() as connection:
            names = sets.names(connection, kind)
            if name is None and len(names) == 1:
                name = names[0]
            row = sets.head(connection, kind, name) if name is not None else None
        command = sets.HEADS[kind][1]
        if row is not None:
            return row
        if not names:
            raise CurateError(f"the catalog has no {kind} yet: make one with `{command}`")
        if name is None:
            raise CurateError(f"there are several {kind}s, choose one with --{kind}: {', '.join(names)}")
        raise CurateError(f"no {kind} called '{name}'; there are: {', '.join(names)}; or make it with `{command}`")

    def check_column(self, kind: str, name: str) -> None:
        """CurateError if the name of a clustering or scoring is none, or is taken by another column of sample_scores."""
        with self.reading() as connection:
            sets.check_column(connection, kind, sets.check_name(name))

    def warn_if_out_of_date(self, kind: str, name: str) -> None:
        """Say so if what a set was made from has been replaced, or has grown, since."""
        with self.reading() as connection:
            row = connection.execute(
                "select made_from from lineage where kind = ? and name = ? and out_of_date", [kind, name]
            ).fetchone()
        if row:
            remedy = sets.HEADS[kind][1].replace("METRIC", name)
            log.warning("the %s '%s' was made before the last change of '%s': `%s` makes it anew", kind, name, row[0], remedy)

    def embedding_fingerprint(self, embedding: str) -> str:
        """What an embedding holds: its weights and preprocessing, and the bytes of every shard in it."""
        row = self.require("embedding", embedding)
        digest = hashlib.sha256(f"{row['weights_sha256']}\n{row['preprocessing']}\n{row['label_source']}".encode())
        with self.reading() as connection:
            for shard in connection.execute(
                "select shard_id, fingerprint, num_embedded from embedded_shards join shards using (shard_id) "
                "where embedding = ? order by shard_id",
                [embedding],
            ).fetchall():
                digest.update(f"\n{shard}".encode())
        return digest.hexdigest()

    # -- runs ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def run(
        self, stage: str, name: str, arguments: dict[str, Any], *,
        made_from: int | None = None, fingerprint: str | None = None, device: str = "cpu",
    ) -> Iterator[int]:  # fmt: skip
        """Record a run of a stage from start to end, whatever the end is; yields its run_id.

        `name` is the set it makes, `made_from` the run that made the set it reads.
        """
        with self.writing() as connection:
            _mark_killed(connection)
            (run_id,) = connection.execute("select coalesce(max(run_id), 0) + 1 from runs").fetchall()[0]
            sets.insert(connection, "runs", {
                "run_id": run_id, "stage": stage, "name": name, "arguments": provenance.canonical(arguments),
                "made_from": made_from, "fingerprint": fingerprint, "version": provenance.version(),
                "git_commit": provenance.git_commit(), "host": platform.node(), "process": os.getpid(), "device": device,
                "status": "running", "started_at": provenance.now(),
            })  # fmt: skip
        status = "failed"
        try:
            yield run_id
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            with self.writing() as connection:
                connection.execute(
                    "update runs set finished_at = ?, status = ? where run_id = ?", [provenance.now(), status, run_id]
                )

    @contextlib.contextmanager
    def only_writer(self, folder: Path, what: str) -> Iterator[None]:
        """Keep a second process out of `folder`; CurateError names the process that is in it."""
        try:
            with locked(folder):
                yield
        except BlockingIOError as error:
            raise CurateError(f"process {error} is working on {what}: wait until it ends, or stop it") from error

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder in the catalog for what workers write before a commit."""
        with workspace(self.path) as folder:
            yield folder


def _mark_killed(connection: duckdb.DuckDBPyConnection) -> None:
    """Runs on this host whose process is gone did not come to their own end."""
    rows = connection.execute(
        "select run_id, process from runs where status = 'running' and host = ?", [platform.node()]
    ).fetchall()
    for run_id, process in rows:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            connection.execute("update runs set status = 'killed' where run_id = ?", [run_id])
        except PermissionError:  # it lives, and is another user's
            continue


def _version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema's version. Raises CurateError for a database that is no catalog, or a newer one."""
    try:
        ((version,),) = connection.execute("select schema_version from meta").fetchall()
    except duckdb.CatalogException as error:
        raise CurateError(f"'{path}' holds a database that is no catalog: choose another folder with -c") from error
    if version > SCHEMA_VERSION:
        raise CurateError(f"'{path}' was made by a newer curate (schema {version}): upgrade with pip install -U")
    return int(version)


def _upgrade(connection: duckdb.DuckDBPyConnection, old: int) -> None:
    """In an open transaction: bring the tables and views of an older version up to date."""
    for version in range(old + 1, SCHEMA_VERSION + 1):
        connection.execute(resources.sql(f"migrations/{version}"))
    if old < SCHEMA_VERSION:
        connection.execute(resources.sql("views"))
        sets.refresh_sample_scores(connection)
        connection.execute("update meta set schema_version = ?", [SCHEMA_VERSION])
