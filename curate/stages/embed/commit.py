"""What workers have finished goes into the catalog: samples, failures, and each shard's row."""

from typing import TYPE_CHECKING

from curate.catalog.catalog import Catalog
from curate.catalog.database import TIMEOUT
from curate.catalog.sql import quote_patterns
from curate.formats.sample_ids import first_sample_id, shard_id_of
from curate.package_data import read_sql
from curate.stages.embed.columns import commit_fields
from curate.stages.embed.pending import (
    ShardMetadata,
    fields_file,
    list_pending,
    pending_file,
    read_metadata,
)
from curate.storage import files

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

_INSERT_SHARD_FAILURE = """
insert into failures (embedding, shard_id, sample_id, key, member, stage, error)
values (?, ?, null, null, null, 'shard', ?)
"""


def commit_pending(
    catalog: Catalog,
    embedding: str,
    run_id: int | None = None,
    shard_ids: list[int] | None = None,
    timeout: float = TIMEOUT,
    fields: str | list[str] | None = None,
) -> None:
    """Commit shards that workers have finished, by default all, in one transaction.

    `fields` of .json members become columns. Raises CatalogLockedError, and CurateError for more
    fields than there can be columns.
    """
    folder = catalog.embedding_folder(embedding)
    if shard_ids is None:
        pending = list_pending(folder)
    else:
        pending = [pending_file(folder, shard_id) for shard_id in shard_ids]
    if not pending:
        return
    with files.localize(pending) as paths, catalog.writing(timeout) as connection:
        paths_by_shard = {shard_id_of(path): path for path in paths}
        metadata = _reject_invalid(catalog, connection, embedding, paths_by_shard)
        if metadata:
            committed = quote_patterns(paths_by_shard[shard_id] for shard_id in metadata)
            _commit(connection, embedding, committed, metadata)
            locations = {
                shard_id: fields_file(folder, shard_id)
                for shard_id, shard_metadata in metadata.items()
                if shard_metadata.has_fields
            }
            if fields is not None and locations:
                commit_fields(connection, locations, fields, run_id)
            if run_id is not None:
                connection.execute(
                    "update embeddings set run_id = ? where embedding = ?", [run_id, embedding]
                )
    # Fields first: without their pending file they would stay.
    files.delete_files(
        fields_file(folder, shard_id)
        for shard_id, shard_metadata in metadata.items()
        if shard_metadata.has_fields
    )
    files.delete_files(pending)


def _reject_invalid(
    catalog: Catalog,
    connection: "DuckDBPyConnection",
    embedding: str,
    paths: "dict[int, Path]",
) -> dict[int, ShardMetadata]:
    """Return the finished shards that can be committed; record the others as failures."""
    # After a kill between the commit and the removal of the files, these are committed already.
    rows = connection.execute(
        "select shard_id from embedded_shards "
        "where embedding = ? and shard_id in (select unnest(?))",
        [embedding, list(paths)],
    ).fetchall()
    committed = {shard_id for (shard_id,) in rows}
    metadata = {
        shard_id: read_metadata(path)
        for shard_id, path in paths.items()
        if shard_id not in committed
    }
    shard_ids = list(metadata)
    connection.execute(
        "delete from failures where embedding = ? and shard_id in (select unnest(?))",
        [embedding, shard_ids],
    )
    rows = connection.execute(
        "select shard_id, checksum from shards where shard_id in (select unnest(?))", [shard_ids]
    ).fetchall()
    checksums = dict(rows)
    for shard_id in shard_ids:
        if shard_id not in checksums:  # its bytes have changed since: it is a new shard now
            catalog.delete_shard_files(embedding, shard_id)
            del metadata[shard_id]
        elif problem := _find_problem(checksums[shard_id], metadata[shard_id]):
            connection.execute(_INSERT_SHARD_FAILURE, [embedding, shard_id, problem])
            del metadata[shard_id]
    return metadata


def _find_problem(checksum: str | None, metadata: ShardMetadata) -> str | None:
    """Why a finished shard cannot be committed, if there is a reason."""
    if metadata.num_samples != metadata.num_embedded + metadata.num_failed:
        return (
            f"{metadata.num_samples} samples, but {metadata.num_embedded} embedded and "
            f"{metadata.num_failed} failed: please report this as a bug"
        )
    if checksum not in (None, metadata.checksum):
        return "its bytes are not those that another embedding read"
    return None


def _commit(
    connection: "DuckDBPyConnection",
    embedding: str,
    pending: list[str],
    metadata: dict[int, ShardMetadata],
) -> None:
    """Insert samples and failures from the pending files, and update the rows of their shards."""
    import pyarrow as pa

    bounds = {
        "first": first_sample_id(min(metadata)),
        "last": first_sample_id(max(metadata) + 1),
    }
    connection.execute(read_sql("stages/commit_shards"), {"files": pending, **bounds})
    connection.execute(
        read_sql("stages/commit_failures"), {"files": pending, "embedding": embedding}
    )
    rows = [
        {"shard_id": shard_id, **vars(shard_metadata)}
        for shard_id, shard_metadata in metadata.items()
    ]
    connection.register("finished", pa.Table.from_pylist(rows))
    connection.execute(
        "insert into embedded_shards "
        "(embedding, shard_id, num_embedded, num_failed, vectors_checksum, captions_checksum) "
        "select ?, shard_id, num_embedded, num_failed, vectors_checksum, captions_checksum "
        "from finished order by shard_id",
        [embedding],
    )
    connection.execute(
        "update shards set num_bytes = finished.num_bytes, etag = finished.etag, "
        "num_samples = finished.num_samples, checksum = finished.checksum, "
        "complete = finished.complete from finished where finished.shard_id = shards.shard_id"
    )
    connection.unregister("finished")


def record_unreadable(catalog: Catalog, embedding: str, problems: dict[int, str]) -> None:
    """Record shards of which nothing could be read as failures; the next call tries them again."""
    if not problems:
        return
    with catalog.writing() as connection:
        rows = connection.execute(
            "select shard_id from embedded_shards where embedding = ?", [embedding]
        ).fetchall()
        finished = {shard_id for (shard_id,) in rows}
        for shard_id, problem in problems.items():
            if shard_id in finished:  # its group failed later, at another shard
                continue
            connection.execute(
                "delete from failures where embedding = ? and shard_id = ?",
                [embedding, shard_id],
            )
            connection.execute(_INSERT_SHARD_FAILURE, [embedding, shard_id, problem])
