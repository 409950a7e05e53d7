"""The shards of the corpus in the catalog: which are new, have moved, or have changed."""

from concurrent.futures import ThreadPoolExecutor

from curate.catalog.catalog import Catalog
from curate.catalog.columns import delete_shard_columns
from curate.catalog.records import ShardRecord
from curate.errors import CurateError
from curate.formats.sample_ids import SHARD_FILES, captions_folder, shard_filename
from curate.formats.shard_patterns import report_missing
from curate.progress import log
from curate.stages.embed.worker import ShardTask
from curate.storage import files
from curate.storage.checksums import file_checksum
from curate.storage.credentials import reveal_credentials
from curate.storage.files import FileStat

# Requests to an object store that are under way at once.
_CONCURRENT_REQUESTS = 32


def stat_shards(urls: list[str], *, allow_missing: bool = False) -> dict[str, FileStat]:
    """Size and time stamp of each shard. Raises CurateError for one that cannot be reached.

    Those that are missing are named all at once; with `allow_missing` they are left out.
    """
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        stats = dict(zip(urls, pool.map(_stat_if_exists, urls), strict=True))
    missing = [url for url, stat in stats.items() if stat is None]
    if missing:
        report_missing(missing, len(urls) - len(missing), allow_missing=allow_missing)
    return {url: stat for url, stat in stats.items() if stat is not None}


def stat_shard(url: str) -> FileStat:
    """Size and time stamp of a shard. Raises CurateError if it is missing or out of reach."""
    return stat_shards([url])[url]


def _stat_if_exists(url: str) -> FileStat | None:
    try:
        return files.stat(url)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CurateError(
            f"cannot reach the shard '{url}' ({error.strerror or error}): check the path, "
            "who may read it, and the network (nothing was changed)"
        ) from error


def register_shards(
    catalog: Catalog, embedding: str, stats: dict[str, FileStat]
) -> list[ShardTask]:
    """Give new shards their ids, and return the shards that this embedding lacks.

    A shard that moved keeps its id. A damaged shard whose bytes have changed becomes a new shard,
    so that no selection of its old samples can mean other ones. Raises CurateError if the bytes of
    an intact shard have changed.
    """
    shards = _list_shards(catalog)
    for url in stats:
        if url in shards and _has_other_bytes(catalog, shards[url], stats[url]):
            _delete_shard(catalog, shards.pop(url))
    unregistered = {url: stat for url, stat in stats.items() if url not in shards}
    _relink_moved(catalog, shards, unregistered)
    _insert_new(catalog, stats)
    shards = _list_shards(catalog)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id, num_embedded > 0, captions_checksum <> '' "
            "from embedded_shards where embedding = ?",
            [embedding],
        ).fetchall()
    # A shard of which a file has disappeared is embedded again. One without any vector has none.
    folder = catalog.embedding_folder(embedding)
    vector_files = _list_shard_files(folder)
    caption_files = _list_shard_files(captions_folder(folder))
    finished = {
        shard_id
        for shard_id, has_vectors, has_captions in rows
        if (not has_vectors or shard_filename(shard_id) in vector_files)
        and (not has_captions or shard_filename(shard_id) in caption_files)
    }
    missing = [shards[url] for url in stats if shards[url].shard_id not in finished]
    return [
        make_shard_task(shard.shard_id, shard.url, stats[shard.url], shard.checksum)
        for shard in missing
    ]


def make_shard_task(shard_id: int, url: str, stat: FileStat, checksum: str | None) -> ShardTask:
    """The task of reading a shard, with the secrets of its URL for workers."""
    return ShardTask(shard_id, url, stat.num_bytes or 0, checksum, reveal_credentials(url))


def list_read_shards(catalog: Catalog, stats: dict[str, FileStat]) -> dict[str, ShardTask]:
    """Those of the shards whose samples are in the catalog, by URL."""
    shards = _list_shards(catalog)
    return {
        url: make_shard_task(shards[url].shard_id, url, stat, shards[url].checksum)
        for url, stat in stats.items()
        if url in shards and shards[url].num_samples
    }


def _list_shard_files(folder: str) -> set[str]:
    """The names of the files in a folder that hold the rows of a shard."""
    return set(map(files.filename, files.list_files(folder, SHARD_FILES)))


def _list_shards(catalog: Catalog) -> dict[str, ShardRecord]:
    columns = ", ".join(ShardRecord._fields)
    with catalog.reading() as connection:
        rows = connection.execute(f"select {columns} from shards").fetchall()
    records = [ShardRecord(*row) for row in rows]
    return {record.url: record for record in records}


def _has_other_bytes(catalog: Catalog, shard: ShardRecord, stat: FileStat) -> bool:
    """Whether a damaged shard has other bytes than before. Raises CurateError for an intact one.

    A shard with the same bytes and another time stamp was touched or copied: the new time stamp is
    stored, so that its checksum is not computed again.
    """
    if shard.checksum is None or stat.matches(shard.num_bytes, shard.etag):
        return False
    is_different = (
        stat.num_bytes not in (None, shard.num_bytes)
        or file_checksum(shard.url, shard.checksum) != shard.checksum
    )
    if is_different and shard.complete:
        raise CurateError(
            f"'{shard.url}' has changed since it was embedded: "
            "restore it, or embed the new corpus elsewhere (-c NEW)"
        )
    if is_different:
        return True
    with catalog.writing() as connection:
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
        delete_shard_columns(connection, shard.shard_id)
    for (embedding,) in rows:
        catalog.delete_shard_files(embedding, shard.shard_id)


def _relink_moved(
    catalog: Catalog, shards: dict[str, ShardRecord], new: dict[str, FileStat]
) -> None:
    """A new URL with the bytes of a shard that is no longer at its URL: store where it moved to."""
    sizes = {stat.num_bytes for stat in new.values()}  # None is one that is not known
    gone = [
        shard
        for shard in shards.values()
        if shard.checksum and (shard.num_bytes in sizes or None in sizes) and not _exists(shard.url)
    ]
    for url, stat in new.items():
        candidates = [shard for shard in gone if stat.num_bytes in (None, shard.num_bytes)]
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
                "sizes": [stat.num_bytes or 0 for _, stat in new],
                "etags": [stat.etag for _, stat in new],
            },
        )
        connection.execute("update meta set next_shard_id = ?", [first_id + len(new)])
