"""The corpus in the catalog: which shards are new, have moved or changed; and what workers have finished reading."""

from pathlib import Path
from typing import Any, NamedTuple

from curate import shards
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.progress import log
from curate.resources import sql
from curate.shards import Stat


class Job(NamedTuple):
    """One shard to read."""

    shard_id: int
    url: str
    num_bytes: int


def register(catalog: Catalog, embedding: str, urls: list[str]) -> list[Job]:
    """Give new shards their ids, and return the shards that this embedding lacks."""
    with catalog.reading() as connection:
        known = {row[1]: row for row in connection.execute(
            "select shard_id, url, num_bytes, version, fingerprint, complete from shards").fetchall()}  # fmt: skip
        finished = {shard_id for shard_id, count in connection.execute(
            "select shard_id, num_embedded from embedded_shards where embedding = ?", [embedding]).fetchall()
            if not count or catalog.vector_file(embedding, shard_id).is_file()}  # fmt: skip
    moved = {(Path(url).name, row[2]): row for url, row in known.items() if row[4]}
    new: list[tuple[str, Stat]] = []
    todo: list[tuple[int, str, int]] = []
    for url in urls:
        found = _stat(url)
        if url in known:
            shard_id = _check_unchanged(catalog, known[url], found)
            if shard_id is None:  # it was damaged, and has been mended
                finished.discard(known[url][0])
                shard_id = known[url][0]
        elif (twin := moved.get((Path(url).name, found.num_bytes))) and shards.sha256(url) == twin[4]:
            shard_id = _follow(catalog, twin, url, found)
        else:
            new.append((url, found))
            continue
        if shard_id not in finished:
            todo.append((shard_id, url, found.num_bytes))
    return [Job(*job) for job in todo + _insert_new(catalog, new)]


def _stat(url: str) -> Stat:
    try:
        return shards.stat(url)
    except OSError as error:
        raise CurateError(f"no shard at '{url}' ({error.strerror or error}): check the path (nothing was changed)") from error


def _check_unchanged(catalog: Catalog, known: tuple[Any, ...], found: Stat) -> int | None:
    """The id of a known shard; None if it was damaged and has other bytes now. CurateError if a sound one changed."""
    shard_id, url, num_bytes, version, fingerprint, complete = known
    if fingerprint is None or (num_bytes, version) == found:
        return int(shard_id)
    if num_bytes != found.num_bytes or shards.sha256(url) != fingerprint:
        if complete:
            raise CurateError(
                f"'{url}' has changed since it was embedded: restore it, or embed the new corpus into another catalog (-c)"
            )
        _forget(catalog, shard_id, found)
        return None
    with catalog.writing() as connection:  # touched or copied, the bytes are the same
        connection.execute("update shards set version = ? where shard_id = ?", [found.version, shard_id])
    return int(shard_id)


def _forget(catalog: Catalog, shard_id: int, found: Stat) -> None:
    """Take a damaged shard out of every embedding, so that its mended version is read from the start."""
    with catalog.writing() as connection:
        rows = connection.execute("select embedding from embedded_shards where shard_id = ?", [shard_id]).fetchall()
        for table in ("samples", "failures", "embedded_shards"):
            connection.execute(f"delete from {table} where shard_id = ?", [shard_id])
        connection.execute(
            "update shards set num_bytes = ?, version = ?, num_samples = null, fingerprint = null, complete = null "
            "where shard_id = ?", [*found, shard_id],
        )  # fmt: skip
    for (embedding,) in rows:
        catalog.vector_file(embedding, shard_id).unlink(missing_ok=True)


def _follow(catalog: Catalog, twin: tuple[Any, ...], url: str, found: Stat) -> int:
    """The same file under a new path: the shard moved, or this is a copy; either way its samples are known."""
    shard_id, old_url = int(twin[0]), twin[1]
    try:
        shards.stat(old_url)
        log.info("%s has the bytes of %s, which the catalog has: left out", url, old_url)
    except OSError:
        log.info("%s moved to %s", old_url, url)
        with catalog.writing() as connection:
            connection.execute("update shards set url = ?, version = ? where shard_id = ?", [url, found.version, shard_id])
    return shard_id


def _insert_new(catalog: Catalog, new: list[tuple[str, Stat]]) -> list[tuple[int, str, int]]:
    if not new:
        return []
    with catalog.writing() as connection:
        row = connection.execute("select coalesce(max(shard_id) + 1, 0) from shards").fetchone()
        first = row[0] if row else 0
        rows = [(first + place, url, found.num_bytes, found.version) for place, (url, found) in enumerate(new)]
        connection.executemany("insert into shards (shard_id, url, num_bytes, version) values (?, ?, ?, ?)", rows)
    return [row[:3] for row in rows]


def commit_pending(catalog: Catalog, embedding: str) -> None:
    """Bring what workers have finished into the catalog; also what a killed run left finished."""
    import pyarrow.parquet as pq

    files = sorted((catalog.embedding_folder(embedding) / "pending").glob("[0-9]*.parquet"))
    if not files:
        return
    with catalog.writing() as connection:
        for file in files:
            facts = {key.decode(): value.decode() for key, value in pq.read_metadata(file).metadata.items()}
            shard_id, counts = int(file.stem), [int(facts[name]) for name in ("num_samples", "num_embedded", "num_failed")]
            if counts[0] != counts[1] + counts[2]:
                raise CurateError(f"shard {shard_id}: {counts[0]} samples, but {counts[1]} embedded and {counts[2]} failed")
            where = [embedding, shard_id]
            if connection.execute("select 1 from embedded_shards where embedding = ? and shard_id = ?", where).fetchone():
                continue  # committed before a kill; only the removal of the file was left
            connection.execute("delete from failures where embedding = ? and shard_id = ?", where)
            connection.execute(sql("stages/commit_shard"), {"file": str(file)})
            connection.execute(sql("stages/commit_failures"), {"file": str(file), "embedding": embedding})
            connection.execute("insert into embedded_shards values (?, ?, ?, ?)", [*where, *counts[1:]])
            connection.execute(
                "update shards set num_samples = ?, fingerprint = ?, complete = ? where shard_id = ?",
                [counts[0], facts["fingerprint"], facts["complete"] == "yes", shard_id],
            )
    for file in files:
        file.unlink()


def record_unreadable(catalog: Catalog, embedding: str, problems: dict[int, str]) -> None:
    """Shards of which nothing could be read: recorded as failures, and tried again by the next call."""
    if not problems:
        return
    with catalog.writing() as connection:
        finished = connection.execute("select shard_id from embedded_shards where embedding = ?", [embedding]).fetchall()
        for shard_id, problem in problems.items():
            if (shard_id,) in finished:  # its group failed later, at another shard
                continue
            connection.execute("delete from failures where embedding = ? and shard_id = ?", [embedding, shard_id])
            connection.execute(
                "insert into failures values (?, ?, null, null, null, 'shard', ?)", [embedding, shard_id, problem]
            )
