"""The shards of the corpus in the catalog: which are new, have moved, or have changed."""

import functools
from collections import defaultdict

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


def stat_shards(urls: list[str], *, allow_missing: bool = False) -> dict[str, FileStat]:
    """Size and time stamp of each shard. Raises CurateError for one that cannot be reached.

    Those that are missing are named all at once; with `allow_missing` they are left out.
    """
    stats, missing = {}, []
    for url, stat in files.stat_files(urls).items():
        if isinstance(stat, FileStat):
            stats[url] = stat
        elif isinstance(stat, FileNotFoundError):
            missing.append(url)
        else:
            raise _explain_out_of_reach(url, stat) from stat
    if missing:
        report_missing(missing, len(stats), allow_missing=allow_missing)
    return stats


def _explain_out_of_reach(url: str, error: OSError) -> CurateError:
    return CurateError(
        f"cannot reach the shard '{url}' ({error.strerror or error}): check the path, "
        "who may read it, and the network (nothing was changed)"
    )


def stat_shard(url: str) -> FileStat:
    """Size and time stamp of a shard. Raises CurateError if it is missing or out of reach."""
    return stat_shards([url])[url]


def register_shards(
    catalog: Catalog, embedding: str, stats: dict[str, FileStat]
) -> list[ShardTask]:
    """Give new shards their ids, and return the shards that this embedding lacks.

    A shard that moved, or that exchanged its name with another, keeps its id. A damaged shard whose
    bytes have changed becomes a new shard, so that no selection of its old samples can mean other
    ones. Raises CurateError if the bytes of an intact shard have changed.
    """
    _follow_renames(catalog, stats)
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


def find_copies(catalog: Catalog, stats: dict[str, FileStat]) -> dict[str, str]:
    """New URLs with the bytes of another shard, in the catalog or before them: {copy: original}.

    Only files of equal size are read. A shard that moved is no copy.
    """
    registered = _list_shards(catalog)
    originals: dict[int, dict[str, str | None]] = {}  # by size: URLs with their checksums
    for shard in registered.values():
        if shard.checksum:
            originals.setdefault(shard.num_bytes, {})[shard.url] = shard.checksum
    copies = {}
    for url, stat in stats.items():
        if url in registered or stat.num_bytes is None:  # an unknown size
            continue
        same_size = originals.setdefault(stat.num_bytes, {})
        for original, checksum in same_size.items():
            if (original in stats or _exists(original)) and _is_copy(url, original, checksum):
                copies[url] = original
                break
        else:
            same_size[url] = None
    return copies


def _exists(url: str) -> bool:
    try:
        return files.is_file(url)
    except OSError as error:
        raise _explain_out_of_reach(url, error) from error


def _is_copy(url: str, original: str, checksum: str | None) -> bool:
    if checksum is None:
        checksum = file_checksum(reveal_credentials(original))
    return file_checksum(reveal_credentials(url), checksum) == checksum


def make_shard_task(shard_id: int, url: str, stat: FileStat, checksum: str | None) -> ShardTask:
    """The task of reading a shard, with the secrets of its URL for workers."""
    address = reveal_credentials(url)
    return ShardTask(shard_id, url, stat.num_bytes or 0, checksum, address, stat.etag)


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


def _follow_renames(catalog: Catalog, stats: dict[str, FileStat]) -> None:
    """Store at which of these URLs shards are now, by their checksums.

    A shard with the same bytes and another time stamp was touched or copied: the new time stamp is
    stored, so that its checksum is not computed again. Damaged shards whose bytes are nowhere are
    taken out of the corpus. Raises CurateError, before anything is stored, for an intact one.
    """
    shards = _list_shards(catalog)
    changed, gone = _find_displaced(shards, stats)
    read_checksum = functools.cache(file_checksum)
    touched = {
        url: stat
        for url, stat in changed.items()
        if stat.num_bytes in (None, shards[url].num_bytes)
        and read_checksum(url, _kind(shards[url])) == shards[url].checksum
    }
    displaced = gone + [shards[url] for url in changed if url not in touched]
    unexplained = {url: stat for url, stat in stats.items() if url not in shards}
    unexplained |= {url: stat for url, stat in changed.items() if url not in touched}
    by_size: defaultdict[int, list[ShardRecord]] = defaultdict(list)
    for shard in displaced:
        by_size[shard.num_bytes].append(shard)
    new_urls: dict[int, str] = {}
    for url, stat in unexplained.items():
        same_bytes = [
            shard
            for shard in (displaced if stat.num_bytes is None else by_size[stat.num_bytes])
            if shard.shard_id not in new_urls and read_checksum(url, _kind(shard)) == shard.checksum
        ]
        if same_bytes:
            same_name = [one for one in same_bytes if _has_same_name(one.url, url)]
            new_urls[(same_name or same_bytes)[0].shard_id] = url
    lost = [
        shards[url]
        for url in changed
        if url in stats and url not in touched and shards[url].shard_id not in new_urls
    ]
    for shard in lost:
        if shard.complete:
            raise CurateError(
                f"'{shard.url}' has changed since it was embedded: "
                "restore it, or embed the new corpus elsewhere (-c NEW)"
            )
    for shard in lost:
        _delete_shard(catalog, shard)
    touched_urls = {shards[url].shard_id: url for url in touched}
    _store_urls(catalog, touched_urls | new_urls, touched | unexplained)
    for shard in displaced:
        if shard.shard_id in new_urls:
            log.info("%s moved to %s", shard.url, new_urls[shard.shard_id])


def _find_displaced(
    shards: dict[str, ShardRecord], stats: dict[str, FileStat]
) -> tuple[dict[str, FileStat], list[ShardRecord]]:
    """URLs of shards where another file seems to be, and the shards whose URLs have none.

    Besides the URLs that were given, those of shards as large as a file that is not known: one of
    two shards that exchanged their names tells where the other is.
    """
    changed = {
        url: stat
        for url, stat in stats.items()
        if url in shards and shards[url].checksum and _differs(shards[url], stat)
    }
    new = [stat for url, stat in stats.items() if url not in shards]
    sizes = {stat.num_bytes for stat in (*changed.values(), *new)}
    candidates = {
        url: shard
        for url, shard in shards.items()
        # None stands for a size that is not known.
        if url not in stats and shard.checksum and (None in sizes or shard.num_bytes in sizes)
    }
    gone = []
    for url, stat in files.stat_files(candidates).items():
        if isinstance(stat, OSError):
            gone.append(shards[url])
        elif _differs(shards[url], stat):
            changed[url] = stat
    return changed, gone


def _has_same_name(url: str, other_url: str) -> bool:
    return files.filename(url) == files.filename(other_url)


def _differs(shard: ShardRecord, stat: FileStat) -> bool:
    return not stat.matches(shard.num_bytes, shard.etag)


def _kind(shard: ShardRecord) -> str:
    """What `file_checksum` takes for a checksum of the same kind: old catalogs have SHA-256."""
    return "xxh3:" if str(shard.checksum).startswith("xxh3:") else "sha256"


def _store_urls(catalog: Catalog, urls: dict[int, str], stats: dict[str, FileStat]) -> None:
    """In one transaction: where shards are, by their ids, with the time stamps there."""
    if not urls:
        return
    with catalog.writing() as connection:
        for shard_id, url in urls.items():
            connection.execute(
                "update shards set url = ?, etag = ? where shard_id = ?",
                [url, stats[url].etag, shard_id],
            )


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
