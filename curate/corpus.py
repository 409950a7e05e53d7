"""The corpus in the catalog: which shards are new, have moved or changed; and what workers have finished reading."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import shards
from curate.catalog import PATIENCE, Catalog
from curate.errors import CurateError
from curate.places import Places
from curate.progress import log
from curate.resources import sql
from curate.shards import Stat


class Job(NamedTuple):
    """One shard to read; `fingerprint` is that of its bytes where an earlier embedding has read them."""

    shard_id: int
    url: str
    num_bytes: int
    fingerprint: str | None


class Known(NamedTuple):
    """A shard as the catalog has it."""

    shard_id: int
    url: str
    num_bytes: int
    version: str
    fingerprint: str | None
    complete: bool | None


def register(catalog: Catalog, embedding: str, urls: list[str]) -> list[Job]:
    """Give new shards their ids, and return the shards that this embedding lacks.

    A shard that moved keeps its id. One that was damaged and has other bytes now is a new shard, so
    that no selection of its old samples can mean other ones. Raises CurateError if a sound one changed.
    """
    known = _known(catalog)
    stats = {url: _stat(url) for url in urls}
    for url in urls:
        if url in known and _has_changed(catalog, known[url], stats[url]):
            _forget(catalog, known.pop(url))
    _follow_moves(catalog, known, {url: stats[url] for url in urls if url not in known})
    _insert_new(catalog, stats)
    known = _known(catalog)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id, num_embedded from embedded_shards where embedding = ?", [embedding]
        ).fetchall()
    # A vector file that is gone is made again.
    finished = {shard_id for shard_id, count in rows if not count or catalog.vector_file(embedding, shard_id).is_file()}
    todo = [known[url] for url in urls if known[url].shard_id not in finished]
    return [Job(shard.shard_id, shard.url, stats[shard.url].num_bytes, shard.fingerprint) for shard in todo]


def _known(catalog: Catalog) -> dict[str, Known]:
    with catalog.reading() as connection:
        rows = connection.execute("select shard_id, url, num_bytes, version, fingerprint, complete from shards").fetchall()
    return {row[1]: Known(*row) for row in rows}


def _stat(url: str) -> Stat:
    try:
        return shards.stat(url)
    except OSError as error:
        raise CurateError(f"no shard at '{url}' ({error.strerror or error}): check the path (nothing was changed)") from error


def _has_changed(catalog: Catalog, known: Known, found: Stat) -> bool:
    """Whether a damaged shard has other bytes than it had when it was read; CurateError if a sound one has."""
    if known.fingerprint is None or (known.num_bytes, known.version) == found:
        return False
    if known.num_bytes != found.num_bytes or shards.sha256(known.url) != known.fingerprint:
        if known.complete:
            raise CurateError(
                f"'{known.url}' has changed since it was embedded: restore it, or embed the new corpus elsewhere (-c NEW)"
            )
        return True
    with catalog.writing() as connection:  # touched or copied, the bytes are the same
        connection.execute("update shards set version = ? where shard_id = ?", [found.version, known.shard_id])
    return False


def _forget(catalog: Catalog, shard: Known) -> None:
    """Take a shard out of the corpus and of every embedding."""
    with catalog.writing() as connection:
        rows = connection.execute("select embedding from embedded_shards where shard_id = ?", [shard.shard_id]).fetchall()
        for table in ("samples", "failures", "embedded_shards", "shards"):
            connection.execute(f"delete from {table} where shard_id = ?", [shard.shard_id])
    for (embedding,) in rows:
        catalog.vector_file(embedding, shard.shard_id).unlink(missing_ok=True)


def _follow_moves(catalog: Catalog, known: dict[str, Known], new: dict[str, Stat]) -> None:
    """A new URL whose bytes are those of a shard that is no longer where it was: the shard moved, or was renamed."""
    sizes = {found.num_bytes for found in new.values()}
    gone = [shard for shard in known.values() if shard.fingerprint and shard.num_bytes in sizes and not _is_there(shard.url)]
    for url, found in new.items():
        twins = [shard for shard in gone if shard.num_bytes == found.num_bytes]
        if not twins:
            continue
        fingerprint = shards.sha256(url)
        twins = [shard for shard in twins if shard.fingerprint == fingerprint]
        twins.sort(key=lambda shard: Path(shard.url).name != Path(url).name)
        if twins:
            gone.remove(twins[0])
            log.info("%s moved to %s", twins[0].url, url)
            with catalog.writing() as connection:
                where = [url, found.version, twins[0].shard_id]
                connection.execute("update shards set url = ?, version = ? where shard_id = ?", where)


def _is_there(url: str) -> bool:
    try:
        shards.stat(url)
    except OSError:
        return False
    return True


def _insert_new(catalog: Catalog, stats: dict[str, Stat]) -> None:
    """In one transaction, so that another process that registers the same shards finds them, or waits."""
    with catalog.writing() as connection:
        known = {url for (url,) in connection.execute("select url from shards").fetchall()}
        new = [(url, *found) for url, found in stats.items() if url not in known]
        if new:
            ((first,),) = connection.execute("select next_shard_id from meta").fetchall()  # ids are never used again
            rows = [(first + place, *row) for place, row in enumerate(new)]
            connection.executemany("insert into shards (shard_id, url, num_bytes, version) values (?, ?, ?, ?)", rows)
            connection.execute("update meta set next_shard_id = ?", [first + len(new)])


def commit_pending(catalog: Catalog, embedding: str, run_id: int | None = None, patience: float = PATIENCE) -> None:
    """Bring what workers have finished into the catalog; also what a killed run left finished. Raises Busy."""
    import pyarrow.parquet as pq

    folder = catalog.embedding_folder(embedding) / "pending"
    files = sorted(folder.glob("[0-9]*.parquet"))
    if not files:
        return
    with catalog.writing(patience) as connection:
        for file in files:
            facts = {key.decode(): value.decode() for key, value in pq.read_metadata(file).metadata.items()}
            shard_id = int(file.stem)
            where = [embedding, shard_id]
            if connection.execute("select 1 from embedded_shards where embedding = ? and shard_id = ?", where).fetchone():
                continue  # committed before a kill; only the removal of the file was left
            connection.execute("delete from failures where embedding = ? and shard_id = ?", where)
            problem = _disagreement(connection, shard_id, facts)
            if problem:
                connection.execute("insert into failures values (?, ?, null, null, null, 'shard', ?)", [*where, problem])
                continue
            _commit(connection, embedding, file, facts)
            if run_id is not None:
                connection.execute("update embeddings set run_id = ? where embedding = ?", [run_id, embedding])
    for file in files:
        file.unlink()


def _disagreement(connection: Any, shard_id: int, facts: dict[str, str]) -> str | None:
    """What is wrong with a finished shard, if anything is; nothing of it is committed then."""
    counts = [int(facts[name]) for name in ("num_samples", "num_embedded", "num_failed")]
    if counts[0] != counts[1] + counts[2]:
        return f"{counts[0]} samples, but {counts[1]} embedded and {counts[2]} failed: please report this as a bug"
    row = connection.execute("select fingerprint from shards where shard_id = ?", [shard_id]).fetchone()
    if row is None:
        return "the shard is no longer in the catalog"
    return "its bytes are not those that another embedding read" if row[0] not in (None, facts["fingerprint"]) else None


def _commit(connection: Any, embedding: str, file: Path, facts: dict[str, str]) -> None:
    shard_id = int(file.stem)
    connection.execute(sql("stages/commit_shard"), {"file": str(file)})
    connection.execute(sql("stages/commit_failures"), {"file": str(file), "embedding": embedding})
    counts = [int(facts["num_embedded"]), int(facts["num_failed"])]
    connection.execute("insert into embedded_shards values (?, ?, ?, ?)", [embedding, shard_id, *counts])
    connection.execute(
        "update shards set num_bytes = ?, version = ?, num_samples = ?, fingerprint = ?, complete = ? where shard_id = ?",
        [int(facts["num_bytes"]), facts["version"], int(facts["num_samples"]), facts["fingerprint"],
         facts["complete"] == "yes", shard_id],
    )  # fmt: skip


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


def classes(catalog: Catalog) -> dict[str, int]:
    """The classes in their natural order, each with its place. Raises CurateError where no sample has a label."""
    with catalog.reading() as connection:
        rows = connection.execute("select distinct label from samples where label is not null").fetchall()
    if not rows:
        raise CurateError("the corpus has no labels: choose a metric that needs none, or embed with --label json:FIELD")
    return {label: code for code, label in enumerate(sorted((label for (label,) in rows), key=shards.natural))}


def codes(labels: np.ndarray, known: dict[str, int]) -> np.ndarray:
    """Labels as places in the classes: text [n] -> int64 [n], −1 where there is none, or an unknown one."""
    texts, places = np.unique(np.ma.filled(np.ma.asarray(labels).astype(object), ""), return_inverse=True)
    return np.array([known.get(text, -1) for text in texts], np.int64)[places]


def labels(catalog: Catalog, ids: np.ndarray, known: dict[str, int]) -> np.ndarray:
    """The label codes of samples, ids int64 [n] in order -> int64 [n]."""
    found = columns(catalog, ids, "label")
    return codes(found["label"], known)


def places(catalog: Catalog, ids: np.ndarray) -> Places:
    """Where samples lie, ids int64 [n] in order."""
    with catalog.reading() as connection:
        urls = dict(connection.execute("select shard_id, url from shards order by shard_id").fetchall())
    found = columns(catalog, ids, "byte_offset, num_bytes")
    known = np.array(sorted(urls), np.int64)
    owners = np.searchsorted(known, shards.shard_of(ids))
    return Places([urls[shard] for shard in known.tolist()], owners, found["byte_offset"], found["num_bytes"])


def columns(catalog: Catalog, ids: np.ndarray, columns: str) -> dict[str, np.ndarray]:
    """Columns of `samples` for ids in order."""
    with catalog.reading() as connection:
        rows = connection.execute(
            f"select sample_id, {columns} from samples where sample_id between ? and ? order by sample_id",
            [int(ids[0]), int(ids[-1])],
        ).fetchnumpy()
    chosen = np.searchsorted(rows["sample_id"], ids)
    return {name: values[chosen] for name, values in rows.items()}
