"""The shards of the corpus in the catalog: which are new, have moved or changed; and what workers
have finished."""

from typing import TYPE_CHECKING

from curate.catalog.catalog import Catalog
from curate.catalog.database import TIMEOUT
from curate.catalog.records import ShardRecord
from curate.errors import CurateError
from curate.formats.sample_ids import SHARD_FILES, first_sample_id, shard_filename, shard_id_of
from curate.package_data import read_sql
from curate.progress import log
from curate.stages.embed.pending import (
    ShardMetadata,
    list_pending,
    pending_file,
    read_metadata,
)
from curate.stages.embed.worker import ShardTask
from curate.storage import files
from curate.storage.checksums import file_checksum
from curate.storage.files import FileStat

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

_INSERT_SHARD_FAILURE = """
insert into failures (embedding, shard_id, sample_id, key, member, stage, error)
values (?, ?, null, null, null, 'shard', ?)
"""


def stat_shard(url: str) -> FileStat:
    """Size and time stamp of a shard. Raises CurateError if it is missing or out of reach."""
    try:
        return files.stat(url)
    except FileNotFoundError as error:
        raise CurateError(f"no shard at '{url}': check the path (nothing was changed)") from error
    except OSError as error:
        raise CurateError(
            f"cannot reach the shard '{url}' ({error.strerror or error}): check the path, "
            "who may read it, and the network (nothing was changed)"
        ) from error


def register_shards(
    catalog: Catalog, embedding: str, stats: dict[str, FileStat]
) -> list[ShardTask]:
    """Give new shards their ids, and return the shards that this embedding lacks.

    A shard that moved keeps its id. One that was damaged and has other bytes now is a new shard, so
    that no selection of its old samples can mean other ones. Raises CurateError if a sound one
    changed.
    """
    shards = _list_shards(catalog)
    for url in stats:
        if url in shards and _has_changed(catalog, shards[url], stats[url]):
            _delete_shard(catalog, shards.pop(url))
    unregistered = {url: stat for url, stat in stats.items() if url not in shards}
    _detect_moved(catalog, shards, unregistered)
    _insert_new(catalog, stats)
    shards = _list_shards(catalog)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id, num_embedded from embedded_shards where embedding = ?", [embedding]
        ).fetchall()
    # A vector file that is gone is made again.
    vector_files = files.list_files(catalog.embedding_folder(embedding), SHARD_FILES)
    existing = set(map(files.filename, vector_files))
    finished = {
        shard_id for shard_id, count in rows if not count or shard_filename(shard_id) in existing
    }
    missing = [shards[url] for url in stats if shards[url].shard_id not in finished]
    return [
        ShardTask(shard.shard_id, shard.url, stats[shard.url].num_bytes, shard.checksum)
        for shard in missing
    ]


def _list_shards(catalog: Catalog) -> dict[str, ShardRecord]:
    columns = ", ".join(ShardRecord._fields)
    with catalog.reading() as connection:
        rows = connection.execute(f"select {columns} from shards").fetchall()
    records = [ShardRecord(*row) for row in rows]
    return {record.url: record for record in records}


def _has_changed(catalog: Catalog, shard: ShardRecord, stat: FileStat) -> bool:
    """Whether a damaged shard has other bytes than before; CurateError for a sound one."""
    if shard.checksum is None or (shard.num_bytes, shard.etag) == stat:
        return False
    has_other_bytes = (
        shard.num_bytes != stat.num_bytes
        or file_checksum(shard.url, shard.checksum) != shard.checksum
    )
    if has_other_bytes and shard.complete:
        raise CurateError(
            f"'{shard.url}' has changed since it was embedded: "
            "restore it, or embed the new corpus elsewhere (-c NEW)"
        )
    if has_other_bytes:
        return True
    with catalog.writing() as connection:  # touched or copied, the bytes are the same
        connection.execute(
            "update shards set etag = ? where shard_id = ?", [stat.etag, shard.shard_id]
        )
    return False


def _delete_shard(catalog: Catalog, shard: ShardRecord) -> None:
    """Take a shard out of the corpus and of every embedding."""
    with catalog.writing() as connection:
        rows = connection.execute(
            "select embedding from embedded_shards where shard_id = ?", [shard.shard_id]
        ).fetchall()
        for table in ("samples", "failures", "embedded_shards", "shards"):
            connection.execute(f"delete from {table} where shard_id = ?", [shard.shard_id])
    for (embedding,) in rows:
        files.delete_file(catalog.vector_file(embedding, shard.shard_id))


def _detect_moved(
    catalog: Catalog, shards: dict[str, ShardRecord], new: dict[str, FileStat]
) -> None:
    """A new URL with the bytes of a shard that is no longer at its URL: it was moved."""
    sizes = {stat.num_bytes for stat in new.values()}
    gone = [
        shard
        for shard in shards.values()
        if shard.checksum and shard.num_bytes in sizes and not _exists(shard.url)
    ]
    for url, stat in new.items():
        candidates = [shard for shard in gone if shard.num_bytes == stat.num_bytes]
        if not candidates:
            continue
        # One checksum of each kind: old catalogs have SHA-256.
        kinds = {len(shard.checksum): shard.checksum for shard in candidates if shard.checksum}
        checksums = {file_checksum(url, like) for like in kinds.values()}
        same_bytes = [shard for shard in candidates if shard.checksum in checksums]
        same_bytes.sort(key=lambda shard: files.filename(shard.url) != files.filename(url))
        if same_bytes:
            shard = same_bytes[0]
            gone.remove(shard)
            log.info("%s moved to %s", shard.url, url)
            with catalog.writing() as connection:
                connection.execute(
                    "update shards set url = ?, etag = ? where shard_id = ?",
                    [url, stat.etag, shard.shard_id],
                )


def _exists(url: str) -> bool:
    try:
        files.stat(url)
    except OSError:
        return False
    return True


def _insert_new(catalog: Catalog, stats: dict[str, FileStat]) -> None:
    """In one transaction, so that another process that registers the same shards sees them."""
    with catalog.writing() as connection:
        registered = {url for (url,) in connection.execute("select url from shards").fetchall()}
        new = [(url, stat) for url, stat in stats.items() if url not in registered]
        if not new:
            return
        ((first_id,),) = connection.execute("select next_shard_id from meta").fetchall()
        connection.execute(
            "insert into shards (shard_id, url, num_bytes, etag) "
            "select unnest(range($first, $first + len($urls))), "
            "unnest($urls), unnest($sizes), unnest($etags)",
            {
                "first": first_id,
                "urls": [url for url, _ in new],
                "sizes": [stat.num_bytes for _, stat in new],
                "etags": [stat.etag for _, stat in new],
            },
        )
        connection.execute("update meta set next_shard_id = ?", [first_id + len(new)])


def commit_pending(
    catalog: Catalog,
    embedding: str,
    run_id: int | None = None,
    shard_ids: list[int] | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Bring shards that workers have finished into the catalog, in one transaction.

    By default all there are. Raises CatalogLockedError.
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
        metadata = _check_metadata(catalog, connection, embedding, paths_by_shard)
        if metadata:
            committed = [str(paths_by_shard[shard_id]) for shard_id in metadata]
            _commit(connection, embedding, committed, metadata)
            if run_id is not None:
                connection.execute(
                    "update embeddings set run_id = ? where embedding = ?", [run_id, embedding]
                )
    for file in pending:
        files.delete_file(file)


def _check_metadata(
    catalog: Catalog,
    connection: "DuckDBPyConnection",
    embedding: str,
    paths: "dict[int, Path]",
) -> dict[int, ShardMetadata]:
    """The finished shards that can be committed; what is wrong with others becomes a failure."""
    # A kill may have come after the commit, when only the removal of the files was left.
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
        if shard_id not in checksums:  # it has been mended since, and is another shard
            files.delete_file(catalog.vector_file(embedding, shard_id))
            del metadata[shard_id]
        elif problem := _validate_counts(checksums[shard_id], metadata[shard_id]):
            connection.execute(_INSERT_SHARD_FAILURE, [embedding, shard_id, problem])
            del metadata[shard_id]
    return metadata


def _validate_counts(checksum: str | None, metadata: ShardMetadata) -> str | None:
    """What is wrong with a finished shard, if anything; then nothing of it is committed."""
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
    """Samples and failures from the pending files, and what is known of each shard."""
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
        "(embedding, shard_id, num_embedded, num_failed, vectors_checksum) "
        "select ?, shard_id, num_embedded, num_failed, vectors_checksum "
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
    """Shards of which nothing could be read: failures, which the next call tries again."""
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
