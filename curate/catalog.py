"""The catalog: a folder with `catalog.duckdb` for narrow tables and Parquet files for vectors.

The database is opened only for the moment of a read or a commit, so that people and other
processes can query it while a long stage runs.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import duckdb

from curate import provenance, resources
from curate.atomic import locked
from curate.errors import CurateError

SCHEMA_VERSION = 1
_PATIENCE = 60.0  # seconds to wait for another process's commit
_NAME = re.compile(r"[A-Za-z0-9@_][A-Za-z0-9@_.,+=-]{0,127}")

# The head table of each kind of set, and the command that makes one.
HEADS = {
    "embedding": ("embeddings", "curate embed SHARDS"),
    "clustering": ("clusterings", "curate cluster"),
    "scoring": ("scorings", "curate score METRIC"),
    "selection": ("selections", "curate select --keep F"),
    "export": ("exports", "curate export SELECTION OUT"),
}


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

    def vector_files(self, embedding: str) -> list[Path]:
        """The Parquet files of an embedding that are in the catalog, in the order of the shards."""
        with self.reading() as connection:
            rows = connection.execute(
                "select shard_id from embedded_shards where embedding = ? and num_embedded > 0 order by shard_id", [embedding]
            ).fetchall()
        return [self.vector_file(embedding, shard_id) for (shard_id,) in rows]

    def centroid_file(self, clustering: str) -> Path:
        return self.path / "clusterings" / f"{clustering}.npy"

    # -- opening ---------------------------------------------------------------------------------

    def create(self) -> Self:
        """Make the folder and the tables where they are missing. Raises CurateError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CurateError(f"cannot make the catalog '{self.path}': {error.strerror}; choose a folder with -c") from error
        with self._connection(read_only=False) as connection:
            tables = connection.execute("select table_name from duckdb_tables() where table_name = 'meta'").fetchall()
            if not tables and not connection.execute("select 1 from duckdb_tables()").fetchall():
                connection.execute("begin")
                connection.execute(resources.sql("schema"))
                connection.execute(resources.sql("views"))
                refresh_sample_scores(connection)
                connection.execute("commit")
            _check_version(connection, self.path)
        return self

    @contextlib.contextmanager
    def reading(self, *, guarded: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; `guarded` also shuts out every file but the catalog's own vectors."""
        self._check_exists()
        with self._connection(read_only=True) as connection:
            _check_version(connection, self.path)
            connection.execute("set variable catalog = ?", [str(self.path)])
            if guarded:
                connection.execute(f"set allowed_directories = [{literal(str(self.path / 'embeddings'))}]")
                connection.execute("set enable_external_access = false")
                connection.execute("set lock_configuration = true")
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed when the block ends well, undone when it does not."""
        self._check_exists()
        with self._connection(read_only=False) as connection:
            _check_version(connection, self.path)
            connection.execute("begin")
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    def _check_exists(self) -> None:
        if not self.database.is_file():
            raise CurateError(f"no catalog at '{self.path}': make one with `curate embed SHARDS -c {self.path.name}`")

    @contextlib.contextmanager
    def _connection(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._connect(read_only)
        try:
            yield connection
        finally:
            connection.close()

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        """Open the database, waiting while another process commits or reads."""
        deadline, pause = time.monotonic() + _PATIENCE, 0.01
        while True:
            try:
                return duckdb.connect(str(self.database), read_only=read_only)
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                holder = re.search(r"held in .*?\(PID (\d+)\)", str(error))
                busy = holder or "different configuration" in str(error)
                if not busy:
                    raise CurateError(f"cannot open '{self.database}': {str(error).splitlines()[0]}") from error
                if time.monotonic() > deadline:
                    who = f"process {holder.group(1)}" if holder else "this process, in another connection,"
                    raise CurateError(f"{who} keeps '{self.database}' open: close it there and try again") from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    # -- sets ------------------------------------------------------------------------------------

    def head(self, kind: str, name: str) -> dict[str, Any] | None:
        """The head row of a set, or None."""
        with self.reading() as connection:
            return head(connection, kind, name)

    def names(self, kind: str) -> list[str]:
        """The names of all sets of a kind, oldest first."""
        with self.reading() as connection:
            rows = connection.execute(f"select {kind} from {HEADS[kind][0]} order by run_id").fetchall()
        return [name for (name,) in rows]

    def require(self, kind: str, name: str | None) -> dict[str, Any]:
        """The head row of a set; of the only one where no name is given. CurateError says how to make it."""
        names = self.names(kind)
        if name is None and len(names) == 1:
            name = names[0]
        row = self.head(kind, name) if name is not None else None
        if row is not None:
            return row
        if not names:
            raise CurateError(f"the catalog has no {kind} yet: make one with `{HEADS[kind][1]}`")
        if name is None:
            raise CurateError(f"there are several {kind}s, choose one with --{kind}: {', '.join(names)}")
        raise CurateError(f"no {kind} called '{name}'; there are: {', '.join(names)}; or make it with `{HEADS[kind][1]}`")

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
    def run(self, stage: str, arguments: dict[str, Any], device: str = "cpu") -> Iterator[int]:
        """Record a run of a stage from start to end, whatever the end is; yields its run_id."""
        import platform

        with self.writing() as connection:
            (run_id,) = _row(connection, "select coalesce(max(run_id), 0) + 1 from runs")
            connection.execute(
                "insert into runs values (?, ?, ?, ?, ?, ?, ?, now()::timestamp, null, 'running')",
                [run_id, stage, provenance.canonical(arguments), provenance.version(), provenance.git_commit(),
                 platform.node(), device],
            )  # fmt: skip
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
                    "update runs set finished_at = now()::timestamp, status = ? where run_id = ?", [status, run_id]
                )

    @contextlib.contextmanager
    def only_writer(self, folder: Path, what: str) -> Iterator[None]:
        """Keep a second process out of `folder`; CurateError names the process that is in it."""
        try:
            with locked(folder):
                yield
        except BlockingIOError as error:
            raise CurateError(f"process {error} is working on {what}: wait until it ends, or stop it") from error


def head(connection: duckdb.DuckDBPyConnection, kind: str, name: str) -> dict[str, Any] | None:
    """The head row of a set, or None, on an open connection."""
    cursor = connection.execute(f"select * from {HEADS[kind][0]} where {kind} = ?", [name])
    row = cursor.fetchone()
    columns = [column[0] for column in cursor.description or []]
    return dict(zip(columns, row, strict=True)) if row else None


def replace_set(connection: duckdb.DuckDBPyConnection, kind: str, body: str | None, row: dict[str, Any]) -> None:
    """In an open transaction: forget the set of that name, its body too, and put in the new head row."""
    for table in filter(None, (HEADS[kind][0], body)):
        connection.execute(f"delete from {table} where {kind} = ?", [row[kind]])
    insert(connection, HEADS[kind][0], row)


def insert(connection: duckdb.DuckDBPyConnection, table: str, row: dict[str, Any]) -> None:
    """Insert one row by column names."""
    marks = ", ".join("?" for _ in row)
    connection.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", list(row.values()))


def refresh_sample_scores(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the wide view `sample_scores` anew: a row a sample, a column for each clustering and each scoring."""
    columns: list[str] = []
    joins: list[str] = []
    for kind, table, value in (("clustering", "assignments", "cluster_id"), ("scoring", "scores", "score")):
        for (name,) in connection.execute(f"select {kind} from {HEADS[kind][0]} order by {kind}").fetchall():
            alias = f"set_{len(joins)}"
            columns.append(f", {alias}.{value} as {quote(name)}")
            joins.append(
                f" left join (select sample_id, {value} from {table} where {kind} = {literal(name)}) as {alias}"
                f" on {alias}.sample_id = samples.sample_id"
            )
    connection.execute(
        "create or replace view sample_scores as select samples.*, shards.url"
        f"{''.join(columns)} from samples join shards using (shard_id){''.join(joins)}"
    )


def check_name(name: str) -> str:
    """Names become folders and columns: letters, digits and @_.,+=- only. Raises CurateError."""
    if not _NAME.fullmatch(name):
        raise CurateError(f"'{name}' cannot be a name: use letters, digits and @ _ . , + = - (128 at most), not first a dot")
    return name


def literal(text: str) -> str:
    """A text as an SQL literal, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _row(connection: duckdb.DuckDBPyConnection, query: str, *parameters: Any) -> tuple[Any, ...]:
    """The only row of a query, such as an aggregate without groups."""
    (row,) = connection.execute(query, list(parameters)).fetchall()
    return tuple(row)


def _check_version(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    try:
        (version,) = _row(connection, "select schema_version from meta")
    except duckdb.CatalogException as error:
        raise CurateError(f"'{path}' holds a database that is no catalog: choose another folder with -c") from error
    if version > SCHEMA_VERSION:
        raise CurateError(f"'{path}' was made by a newer curate (schema {version}): upgrade with pip install -U")
