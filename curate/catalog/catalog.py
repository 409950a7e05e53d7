"""A catalog folder: its paths, its connections, its sets, and the record of what ran.

The database is opened only for the moment of a read or a commit, so that people and other processes
can query it while a long stage runs.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import duckdb

from curate.catalog import database, provenance, runs, sets
from curate.catalog.compaction import compact
from curate.catalog.database import SCHEMA_VERSION, TIMEOUT
from curate.catalog.records import ClusteringRecord, EmbeddingRecord, ProbeRecord, SetRecord
from curate.catalog.sql import quote_literal, quote_patterns
from curate.errors import CurateError, OptionError
from curate.execution.limits import memory_limit
from curate.formats.sample_ids import caption_file, shard_filename
from curate.formatting import is_unicode
from curate.package_data import read_sql
from curate.progress import announce
from curate.storage import files
from curate.storage.credentials import hide_credentials
from curate.storage.locks import lock_folder, remove_stale, temporary_folder

_DATABASE_MEMORY = 1 << 30  # bytes; queries that need more use the disk

AnySet = TypeVar("AnySet", bound=SetRecord)


class Catalog:
    """A catalog folder. Constructing one reads nothing; `create` makes it where it is missing."""

    def __init__(self, path: "str | Path | Catalog") -> None:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise CurateError(
                f"'{path}': a catalog is a folder of this machine (-c DIR); its vectors may be "
                "under a URL (curate embed --files)"
            )
        if isinstance(path, Catalog):
            self.path: Path = path.path
        else:
            self.path = Path(path).expanduser().absolute()
            if not is_unicode(str(self.path)):
                raise CurateError(f"'{self.path}' is not UTF-8: choose another folder with -c")
        self._files_root: str | None = None

    def __repr__(self) -> str:
        return f"Catalog({str(self.path)!r})"

    # -- paths -------------------------------------------------------------------------------------

    @property
    def database_path(self) -> Path:
        return self.path / "catalog.duckdb"

    @property
    def files_root(self) -> str:
        """Where vectors and centroids are stored, which every worker must reach.

        This folder, or the URL that `create` was given.
        """
        if self._files_root is None:
            with self.reading() as connection:
                ((url,),) = connection.execute("select files_url from meta").fetchall()
            self._files_root = url or str(self.path)
        return self._files_root

    def embedding_folder(self, embedding: str) -> str:
        return files.join(self.files_root, "embeddings", embedding)

    def vector_file(self, embedding: str, shard_id: int) -> str:
        return files.join(self.embedding_folder(embedding), shard_filename(shard_id))

    def vector_files(self, embedding: str, within: str | None = None) -> dict[str, int]:
        """The Parquet files of an embedding, in the order of the shards, with their rows.

        `within` a selection: the files that have members of it, with the rows of these.
        """
        with self.reading() as connection:
            rows = connection.execute(
                "select shard_id, num_embedded from embedded_shards "
                "where embedding = ? and num_embedded > 0 order by shard_id",
                [embedding],
            ).fetchall()
            if within is not None:
                rows = connection.execute(
                    "select shard_id, count(*) from members join samples using (sample_id) "
                    "join embedded_shards using (shard_id) "
                    "where selection = $1 and embedding = $2 and sample_id not in "
                    "(select sample_id from failures "
                    "where embedding = $2 and sample_id is not null) "
                    "group by shard_id order by shard_id",
                    [within, embedding],
                ).fetchall()
        folder = self.embedding_folder(embedding)
        return {files.join(folder, shard_filename(shard_id)): count for shard_id, count in rows}

    def caption_file(self, embedding: str, shard_id: int) -> str:
        return caption_file(self.embedding_folder(embedding), shard_id)

    def caption_files(self, embedding: str) -> dict[str, int]:
        """The Parquet files with the vectors of captions, in the order of the shards.

        Each with its rows, the samples that have a caption. No files where captions were not
        embedded.
        """
        with self.reading() as connection:
            rows = connection.execute(read_sql("stages/captioned_shards"), [embedding]).fetchall()
        folder = self.embedding_folder(embedding)
        return {caption_file(folder, shard_id): count for shard_id, count in rows}

    def delete_shard_files(self, embedding: str, shard_id: int) -> None:
        """Remove what an embedding has stored of a shard."""
        files.delete_files(
            [self.vector_file(embedding, shard_id), self.caption_file(embedding, shard_id)]
        )

    @property
    def clusterings_folder(self) -> str:
        return files.join(self.files_root, "clusterings")

    def centroids_file(self, clustering: ClusteringRecord) -> str:
        return files.join(self.clusterings_folder, clustering.centroids_file)

    def probe_folder(self, folder: str) -> Path:
        """Where the parts of a probe are stored, by `ProbeRecord.folder`."""
        return self.path / "probes" / folder

    def probe_parts(self, probe: ProbeRecord) -> list[Path]:
        """The parts of a probe, sorted by name."""
        with self.reading() as connection:
            rows = connection.execute(
                "select distinct part from probe_models where probe = ? order by 1", [probe.probe]
            ).fetchall()
        return [self.probe_folder(probe.folder) / part for (part,) in rows]

    # -- creating and opening ----------------------------------------------------------------------

    def create(self, files_url: str | None = None) -> Self:
        """Make the folder and the tables where they are missing.

        `files_url` is where a new catalog stores vectors and centroids. Raises CurateError.
        """
        if files_url and not files.is_url(files_url):
            raise OptionError(
                f"--files {files_url}: give a URL such as s3://…; without it, files are stored in "
                "the catalog's folder"
            )
        if files_url and hide_credentials(files_url) != files_url:
            raise OptionError(
                f"--files {hide_credentials(files_url)}: the catalog would store the password or "
                "query of this URL; give them by the store's own configuration"
            )
        self._check_path()
        if files_url and not self.database_path.exists():
            _check_is_empty(files_url)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CurateError(
                f"cannot make the catalog '{self.path}': {error.strerror}; choose a folder with -c"
            ) from error
        with self._connection(read_only=False) as connection:
            if database.is_empty(connection):
                connection.execute("begin")
                database.create_schema(connection, files_url)
                connection.execute("commit")
            database.read_schema_version(connection, self.path)
        if files_url and self.files_root != files_url:
            raise CurateError(
                f"the files of '{self.path}' are stored at '{self.files_root}' already: "
                "leave out --files, or choose another -c"
            )
        return self

    @contextlib.contextmanager
    def reading(
        self, *, sandboxed: bool = False, memory: int = _DATABASE_MEMORY
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; `sandboxed` opens no file but the catalog's own vectors.

        `memory` is in bytes.
        """
        self._check_exists()
        with self._connection(read_only=True, memory=memory, is_private=sandboxed) as connection:
            if database.read_schema_version(connection, self.path) == SCHEMA_VERSION:
                connection.execute(
                    "set variable catalog = (select coalesce(files_url, ?) from meta)",
                    [str(self.path)],
                )
                if sandboxed:
                    # As it is, for the files, and as the pattern in the macro that finds them.
                    folder = self.path / "embeddings"
                    folders = map(quote_literal, [str(folder), *quote_patterns([folder])])
                    connection.execute(f"set allowed_directories = [{', '.join(folders)}]")
                    connection.execute("set enable_external_access = false")
                    connection.execute("set lock_configuration = true")
                yield connection
                return
        with self.writing():  # brings the catalog up to date
            pass
        with self.reading(sandboxed=sandboxed, memory=memory) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, timeout: float = TIMEOUT) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed at the block's good end, else undone.

        Raises CatalogLockedError after `timeout` seconds.
        """
        self._check_exists()
        if (file := database.open_database(self.database_path)).is_for_newer_clients:
            compact(self.database_path, is_for_newer_clients=True)
            file.is_for_newer_clients = False
        with self._connection(read_only=False, timeout=timeout) as connection:
            schema_version = database.read_schema_version(connection, self.path)
            connection.execute("begin")
            try:
                database.upgrade_schema(connection, schema_version)
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    def _check_path(self) -> None:
        """CurateError for a path in which DuckDB would take `?` for the start of options."""
        if "?" in str(self.path):
            raise CurateError(
                f"a catalog cannot be at '{self.path}': choose a path without ? with -c"
            )

    def _check_exists(self) -> None:
        self._check_path()
        if not self.database_path.is_file():
            raise CurateError(
                f"no catalog at '{self.path}': make one with `curate embed SHARDS -c {self.path}`"
            )

    @contextlib.contextmanager
    def _connection(
        self,
        *,
        read_only: bool,
        timeout: float = TIMEOUT,
        memory: int = _DATABASE_MEMORY,
        is_private: bool = False,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """`is_private`: a DuckDB of its own, whose settings concern no other connection."""
        path = self.database_path
        file = database.Database(path) if is_private else database.open_database(path)
        connection = file.connect(read_only, timeout)
        try:
            limit = min(memory, _half_of_memory())
            connection.execute(f"set memory_limit = '{limit >> 20}MiB'")
            yield connection
        finally:
            file.close(connection)

    # -- sets --------------------------------------------------------------------------------------

    def find(self, record_type: type[AnySet], name: str) -> AnySet | None:
        """The record of a set, or None."""
        with self.reading() as connection:
            return sets.find_set(connection, record_type, name)

    def find_up_to_date(
        self, record_type: type[AnySet], name: str, fingerprint: str
    ) -> AnySet | None:
        """The record of a set if it has this fingerprint, so that its stage need not run.

        What killed runs left is removed then, as the stage would have done.
        """
        record = self.find(record_type, name)
        if record is None or getattr(record, "fingerprint", None) != fingerprint:
            return None
        with self.reading() as connection:
            killed = runs.find_killed(connection)
        if killed:
            with self.writing() as connection:
                runs.mark_killed(connection)
        for folder in (self.path, self.path / "figures"):
            remove_stale(folder)
        return record

    def list_names(self, record_type: type[SetRecord]) -> list[str]:
        """The names of all sets of a kind, oldest first."""
        with self.reading() as connection:
            return sets.list_sets(connection, record_type)

    def require(self, record_type: type[AnySet], name: str | None) -> AnySet:
        """The record of a set; of the only one where no name is given.

        CurateError says how to make it.
        """
        kind, command = record_type.kind, record_type.command
        with self.reading() as connection:
            names = sets.list_sets(connection, record_type)
            if name is None and len(names) == 1:
                name = names[0]
            record = sets.find_set(connection, record_type, name) if name is not None else None
        if record is not None:
            return record
        if not names:
            raise CurateError(f"the catalog has no {kind} yet: make one with `{command}`")
        available = ", ".join(names)
        if name is None:
            raise CurateError(f"there are several {kind}s, choose one with --{kind}: {available}")
        raise CurateError(
            f"no {kind} called '{name}'; there are: {available}; or make it with `{command}`"
        )

    def check_column_name(self, record_type: type[SetRecord], name: str) -> None:
        """CurateError where a clustering or scoring cannot have this name."""
        with self.reading() as connection:
            sets.check_column_name(connection, record_type, sets.check_name(name))

    def embedding_fingerprint(self, embedding: str, urls: list[str] | None = None) -> str:
        """What an embedding holds: weights, preprocessing, bytes of its shards (or of `urls`)."""
        record = self.require(EmbeddingRecord, embedding)
        head = f"{record.weights_sha256}\n{record.preprocessing}\n{record.label_source}"
        digest = hashlib.sha256(head.encode())
        with self.reading() as connection:
            shards = connection.execute(
                "select shard_id, checksum, num_embedded "
                "from embedded_shards join shards using (shard_id) "
                "where embedding = $1 "
                "and ($2::text[] is null or url in (select unnest($2::text[]))) order by shard_id",
                [embedding, urls],
            ).fetchall()
        for shard in shards:
            digest.update(f"\n{shard}".encode())
        return digest.hexdigest()

    # -- runs --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def record_run(
        self,
        stage: str,
        name: str,
        arguments: dict[str, Any],
        *,
        parents: Sequence[int] = (),
        fingerprint: str | None = None,
        code_checksum: str | None = None,
        device: str = "cpu",
    ) -> Iterator[int]:
        """Record a run of a stage from start to end, whatever the end is; yields its run_id.

        `name` is the set it makes, `parents` are the runs that made the sets it reads.
        """
        with self.writing() as connection:
            runs.mark_killed(connection)
            ((run_id,),) = connection.execute(
                "select coalesce(max(run_id), 0) + 1 from runs"
            ).fetchall()
            row = {
                "run_id": run_id,
                "stage": stage,
                "name": name,
                "arguments": provenance.canonical_json(arguments),
                "parent_run_ids": sorted(set(parents)),
                "fingerprint": fingerprint,
                "code_checksum": code_checksum,
                "version": provenance.version(),
                "git_commit": provenance.git_commit(),
                "host": platform.node(),
                "process": os.getpid(),
                "device": device,
                "status": "running",
                "started_at": provenance.now(),
                "process_start": runs.process_start(os.getpid()),
            }
            sets.insert_row(connection, "runs", row)
        if stage != "embed":  # which says what it loads
            announce(f"{stage}: working on '{name}'")
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
                    "update runs set finished_at = ?, status = ? where run_id = ?",
                    [provenance.now(), status, run_id],
                )

    def run_arguments(self, run_id: int) -> dict[str, Any]:
        """What a run was called with; nothing for a run that the catalog does not know."""
        with self.reading() as connection:
            rows = connection.execute(
                "select arguments from runs where run_id = ?", [run_id]
            ).fetchall()
        return dict(json.loads(rows[0][0])) if rows else {}

    def record_timing(self, run_id: int, seconds: dict[str, float]) -> None:
        """Store how the time of a run divides between kinds of work."""
        rounded = {kind: round(value, 3) for kind, value in seconds.items()}
        with self.writing() as connection:
            connection.execute(
                "update runs set timing = ? where run_id = ?",
                [provenance.canonical_json(rounded), run_id],
            )

    # -- locks and temporary folders ---------------------------------------------------------------

    @contextlib.contextmanager
    def write_lock(self, folder: str | Path, description: str) -> Iterator[None]:
        """Keep a second process out of a folder; CurateError names the process that holds it."""
        lock = Path(folder)
        # In an object store no process can lock another out: the lock is in the catalog.
        if files.is_url(str(folder)):
            digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            lock = self.path / "locks" / digest
        try:
            with lock_folder(lock):
                yield
        except BlockingIOError as error:
            raise CurateError(
                f"process {error} is working on {description}: wait until it ends, or stop it"
            ) from error

    @contextlib.contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """A temporary folder in the catalog for what workers of this machine write."""
        self._check_exists()
        with temporary_folder(self.path) as folder:
            yield folder

    @contextlib.contextmanager
    def shared_tempdir(self, run_id: int) -> Iterator[str]:
        """A temporary folder that every worker reaches too.

        Those of killed runs are removed by later runs.
        """
        if not files.is_url(self.files_root):
            with self.temporary_folder() as folder:
                yield str(folder)
            return
        parent = files.join(self.files_root, "work")
        own_folder, folders = files.join(parent, str(run_id)), files.list_files(parent)
        # Read after the listing, so that every live run with a folder in it is known.
        with self.reading() as connection:
            rows = connection.execute("select run_id from runs where status = 'running'").fetchall()
        # A catalog restored from a copy uses its run ids again.
        live = {str(running_id) for (running_id,) in rows} - {str(run_id)}
        for folder_url in folders:
            if files.filename(folder_url) not in live:
                files.delete_remote_folder(folder_url)
        try:
            yield own_folder
        finally:
            files.delete_remote_folder(own_folder)


@functools.cache
def _half_of_memory() -> int:
    """Bytes; read once, because looking through control groups costs as much as a connection."""
    return memory_limit() // 2


def _check_is_empty(url: str) -> None:
    """CurateError for a URL that is out of reach, or holds files: two catalogs would collide."""
    try:
        existing = files.list_files(url)
    except OSError as error:
        raise CurateError(
            f"--files {url}: {error.strerror or error}: check the URL, who may write there, "
            "and the network"
        ) from error
    if existing:
        raise CurateError(
            f"--files {url}: it holds other files, perhaps of another catalog: choose a new URL"
        )
