"""The catalog: a folder with `catalog.duckdb` for narrow tables and Parquet files for vectors.

The database is opened only for the moment of a read or a commit, so that people and other
processes can query it while a long stage runs.
"""

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import duckdb

from curate import database, provenance, resources, runs, sets, storage
from curate.database import PATIENCE, SCHEMA_VERSION
from curate.errors import CurateError
from curate.memory import allowed
from curate.progress import log
from curate.workspaces import locked, tidy, workspace

_MEMORY = 1 << 30  # bytes that the database may take; what needs more goes to the disk


class Catalog:
    """A catalog folder. Opening one reads nothing; `create` makes it where it is missing."""

    def __init__(self, path: "str | Path | Catalog") -> None:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise CurateError(f"'{path}': a catalog lies in a folder of this machine (-c DIR); its vectors may lie under a URL "
                              "(curate embed --files)")  # fmt: skip
        self.path: Path = path.path if isinstance(path, Catalog) else Path(path).expanduser().absolute()
        self._files: Path | None = None

    def __repr__(self) -> str:
        return f"Catalog({str(self.path)!r})"

    @property
    def database(self) -> Path:
        return self.path / "catalog.duckdb"

    @property
    def files(self) -> Path:
        """Where vectors and centroids lie, for all workers to reach: this folder, or the URL that `create` was given."""
        if self._files is None:
            with self.reading() as connection:
                ((url,),) = connection.execute("select files from meta").fetchall()
            self._files = storage.at(url) if url else self.path
        return self._files

    def embedding_folder(self, embedding: str) -> Path:
        return self.files / "embeddings" / embedding

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
        return self.files / "clusterings" / str(clustering["centroids"])

    def probe_folder(self, probe: dict[str, Any]) -> Path:
        """Where the parts of a probe (its head row) lie."""
        return self.path / "probes" / str(probe["folder"])

    def probe_parts(self, probe: dict[str, Any]) -> list[Path]:
        """The parts of a probe (its head row), in the order of their names."""
        with self.reading() as connection:
            rows = connection.execute("select distinct part from probe_models where probe = ? order by 1", [probe["probe"]])
            return [self.probe_folder(probe) / part for (part,) in rows.fetchall()]

    def create(self, files: str | None = None) -> Self:
        """Make the folder and the tables where they are missing; `files` is a URL for vectors and centroids. CurateError."""
        if files and not storage.is_url(files):
            raise CurateError(f"--files {files}: give a URL such as s3://…; without it, files lie in the catalog's folder")
        if re.search(r"[*?\[]", str(self.path)):  # DuckDB would read the paths of the vectors as patterns
            raise CurateError(f"a catalog cannot lie at '{self.path}': choose a path without * ? and [ with -c")
        if files and not self.database.exists():
            storage.check_free(files)
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
                connection.execute("update meta set files = ?", [files])
                connection.execute("commit")
            database.version(connection, self.path)
        if files and str(self.files) != str(storage.at(files)):
            raise CurateError(
                f"the files of '{self.path}' lie at '{self.files}' already: leave out --files, or choose another -c"
            )
        return self

    @contextlib.contextmanager
    def reading(self, *, guarded: bool = False, memory: int = _MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; `guarded` also shuts out every file but the catalog's own vectors. `memory` is in bytes."""
        self._check_exists()
        with self._connection(read_only=True, memory=memory) as connection:
            if database.version(connection, self.path) == SCHEMA_VERSION:
                connection.execute("set variable catalog = (select coalesce(files, ?) from meta)", [str(self.path)])
                if guarded:
                    connection.execute(f"set allowed_directories = [{sets.literal(str(self.path / 'embeddings'))}]")
                    connection.execute("set enable_external_access = false")
                    connection.execute("set lock_configuration = true")
                yield connection
                return
        with self.writing():  # brings the catalog up to date
            pass
        with self.reading(guarded=guarded, memory=memory) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, patience: float = PATIENCE) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed when the block ends well, undone when it does not. Raises Busy after `patience` s."""
        self._check_exists()
        with self._connection(read_only=False, patience=patience) as connection:
            old = database.version(connection, self.path)
            connection.execute("begin")
            try:
                database.upgrade(connection, old)
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    def _check_exists(self) -> None:
        if not self.database.is_file():
            raise CurateError(f"no catalog at '{self.path}': make one with `curate embed SHARDS -c {self.path}`")

    @contextlib.contextmanager
    def _connection(
        self, *, read_only: bool, patience: float = PATIENCE, memory: int = _MEMORY
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = database.connect(self.database, read_only, patience)
        try:
            connection.execute(f"set memory_limit = '{min(memory, allowed() // 2) >> 20}MiB'")
            yield connection
        finally:
            connection.close()

    def head(self, kind: str, name: str) -> dict[str, Any] | None:
        """The head row of a set, or None."""
        with self.reading() as connection:
            return sets.head(connection, kind, name)

    def made(self, kind: str, name: str, fingerprint: str) -> dict[str, Any] | None:
        """The head row of a set if it was made from just this, so that there is nothing to do but to sweep up after a kill."""
        row = self.head(kind, name)
        if row is None or row["fingerprint"] != fingerprint:
            return None
        with self.reading() as connection:
            killed = runs.killed(connection)
        if killed:
            with self.writing() as connection:
                runs.mark_killed(connection)
        for folder in (self.path, self.path / "figures"):
            tidy(folder)
        return row

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

    @contextlib.contextmanager
    def run(
        self, stage: str, name: str, arguments: dict[str, Any], *,
        made_from: int | None = None, fingerprint: str | None = None, device: str = "cpu",
    ) -> Iterator[int]:  # fmt: skip
        """Record a run of a stage from start to end, whatever the end is; yields its run_id.

        `name` is the set it makes, `made_from` the run that made the set it reads.
        """
        with self.writing() as connection:
            runs.mark_killed(connection)
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

    def record_profile(self, run_id: int, seconds: dict[str, float]) -> None:
        """Keep where the time of a run went, by kind of work."""
        with self.writing() as connection:
            rounded = {kind: round(value, 3) for kind, value in seconds.items()}
            connection.execute("update runs set profile = ? where run_id = ?", [provenance.canonical(rounded), run_id])

    @contextlib.contextmanager
    def only_writer(self, folder: Path, what: str) -> Iterator[None]:
        """Keep a second process out of `folder`; CurateError names the process that is in it."""
        if storage.is_remote(folder):  # where no process can lock another out: the lock is in the catalog
            folder = self.path / "locks" / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        try:
            with locked(folder):
                yield
        except BlockingIOError as error:
            raise CurateError(f"process {error} is working on {what}: wait until it ends, or stop it") from error

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder in the catalog for what workers write before a commit."""
        self._check_exists()
        with workspace(self.path) as folder:
            yield folder

    @contextlib.contextmanager
    def exchange(self, run_id: int) -> Iterator[Path]:
        """A folder that every worker reaches too, gone at the end; of killed runs, those that begin later remove it."""
        if not storage.is_remote(self.files):
            with self.workspace() as folder:
                yield folder
            return
        work = self.files / "work"
        ours, found = work / str(run_id), storage.listed(work, "*")
        with self.reading() as connection:  # after the listing, so that whoever is in it and lives is known
            rows = connection.execute("select run_id from runs where status = 'running'").fetchall()
        alive = {str(running) for (running,) in rows} - {ours.name}  # a catalog from a copy uses its numbers again
        for old in found:
            if old.name not in alive:
                storage.remove(old)
        try:
            yield ours
        finally:
            storage.remove(ours)
