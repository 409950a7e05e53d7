"""The corpus in the catalog: which shards are new, have moved or changed; and what workers have finished reading."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import shards, storage
from curate.catalog import Catalog
from curate.database import PATIENCE
from curate.errors import CurateError
from curate.places import Places
from curate.progress import log
from curate.resources import sql
from curate.shards import Stat

_SHARD_FAILED = "insert into failures values (?, ?, null, null, null, 'shard', ?)"


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


def register(catalog: Catalog, embedding: str, stats: dict[str, Stat]) -> list[Job]:
    """Give new shards their ids, and return the shards that this embedding lacks.

    A shard that moved keeps its id. One that was damaged and has other bytes now is a new shard, so
    that no selection of its old samples can mean other ones. Raises CurateError if a sound one changed.
    """
    known = _known(catalog)
    for url in stats:
        if url in known and _has_changed(catalog, known[url], stats[url]):
            _forget(catalog, known.pop(url))
    _follow_moves(catalog, known, {url: found for url, found in stats.items() if url not in known})
    _insert_new(catalog, stats)
    known = _known(catalog)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id, num_embedded from embedded_shards where embedding = ?", [embedding]
        ).fetchall()
    # A vector file that is gone is made again.
    there = {path.name for path in storage.listed(catalog.embedding_folder(embedding), "[0-9]*.parquet")}
    finished = {shard_id for shard_id, count in rows if not count or catalog.vector_file(embedding, shard_id).name in there}
    todo = [known[url] for url in stats if known[url].shard_id not in finished]
    return [Job(shard.shard_id, shard.url, stats[shard.url].num_bytes, shard.fingerprint) for shard in todo]


def _known(catalog: Catalog) -> dict[str, Known]:
    with catalog.reading() as connection:
        rows = connection.execute("select shard_id, url, num_bytes, version, fingerprint, complete from shards").fetchall()
    return {row[1]: Known(*row) for row in rows}


def stat(url: str) -> Stat:
    """Size and version of a shard. Raises CurateError if it is not there, or cannot be reached."""
    try:
        return shards.stat(url)
    except FileNotFoundError as error:
        raise CurateError(f"no shard at '{url}': check the path (nothing was changed)") from error
    except OSError as error:
        raise CurateError(f"cannot reach the shard '{url}' ({error.strerror or error}): check the path, who may read it, and "
                          "the network (nothing was changed)") from error  # fmt: skip


def _has_changed(catalog: Catalog, known: Known, found: Stat) -> bool:
    """Whether a damaged shard has other bytes than it had when it was read; CurateError if a sound one has."""
    if known.fingerprint is None or (known.num_bytes, known.version) == found:
        return False
    if known.num_bytes != found.num_bytes or shards.fingerprint(known.url, known.fingerprint) != known.fingerprint:
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
        of_each_kind = {len(shard.fingerprint): shard.fingerprint for shard in twins if shard.fingerprint}
        found_here = {shards.fingerprint(url, like) for like in of_each_kind.values()}
        twins = [shard for shard in twins if shard.fingerprint in found_here]
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
            columns = [list(column) for column in zip(*new, strict=True)]
            connection.execute(
                "insert into shards (shard_id, url, num_bytes, version) "
                "select unnest(range($first, $first + len($urls))), unnest($urls), unnest($sizes), unnest($versions)",
                {"first": first, **dict(zip(("urls", "sizes", "versions"), columns, strict=True))},
            )
            connection.execute("update meta set next_shard_id = ?", [first + len(new)])


def commit_pending(
    catalog: Catalog, embedding: str, run_id: int | None = None, shard_ids: list[int] | None = None, patience: float = PATIENCE
) -> None:
    """Bring shards that workers have finished into the catalog, in one transaction; by default all there are. Raises Busy."""
    folder = catalog.embedding_folder(embedding) / "pending"
    if shard_ids is None:
        files = storage.listed(folder, "[0-9]*.parquet")
    else:
        files = [folder / f"{shard_id:08d}.parquet" for shard_id in shard_ids]
    if not files:
        return
    with storage.local(files) as copies, catalog.writing(patience) as connection:
        # A kill may have come after the commit, when only the removal of the files was left.
        done = connection.execute(
            "select shard_id from embedded_shards where embedding = ? and shard_id in (select unnest(?))",
            [embedding, [int(file.stem) for file in copies]],
        ).fetchall()
        finished = {shard_id for (shard_id,) in done}
        facts = {int(file.stem): _facts(file) for file in copies if int(file.stem) not in finished}
        ids = list(facts)
        connection.execute("delete from failures where embedding = ? and shard_id in (select unnest(?))", [embedding, ids])
        rows = connection.execute("select shard_id, fingerprint from shards where shard_id in (select unnest(?))", [ids])
        known = dict(rows.fetchall())
        for shard_id in ids:
            if shard_id not in known:  # it has been mended since, and is another shard
                catalog.vector_file(embedding, shard_id).unlink(missing_ok=True)
                del facts[shard_id]
            elif problem := _disagreement(known[shard_id], facts[shard_id]):
                connection.execute(_SHARD_FAILED, [embedding, shard_id, problem])
                del facts[shard_id]
        if facts:
            _commit(connection, embedding, copies[0].parent, facts)
            if run_id is not None:
                connection.execute("update embeddings set run_id = ? where embedding = ?", [run_id, embedding])
    for file in files:
        file.unlink()


def _facts(file: Path) -> dict[str, str]:
    """What a worker noted of a whole shard."""
    import pyarrow.parquet as pq

    return {key.decode(): value.decode() for key, value in pq.read_metadata(file).metadata.items()}


def _disagreement(known: str | None, facts: dict[str, str]) -> str | None:
    """What is wrong with a finished shard, if anything is; nothing of it is committed then."""
    counts = [int(facts[name]) for name in ("num_samples", "num_embedded", "num_failed")]
    if counts[0] != counts[1] + counts[2]:
        return f"{counts[0]} samples, but {counts[1]} embedded and {counts[2]} failed: please report this as a bug"
    return "its bytes are not those that another embedding read" if known not in (None, facts["fingerprint"]) else None


def _commit(connection: Any, embedding: str, folder: Path, facts: dict[int, dict[str, str]]) -> None:
    """Samples and failures from the files of these shards, and what is known of each shard."""
    import pyarrow as pa

    files = [str(folder / f"{shard_id:08d}.parquet") for shard_id in facts]
    ids = {"first": shards.first_sample_id(min(facts)), "last": shards.first_sample_id(max(facts) + 1)}
    connection.execute(sql("stages/commit_shards"), {"files": files, **ids})
    connection.execute(sql("stages/commit_failures"), {"files": files, "embedding": embedding})
    found = list(facts.values())
    numbers = {name: pa.array([int(fact[name]) for fact in found], pa.int64())
               for name in ("num_bytes", "num_samples", "num_embedded", "num_failed")}  # fmt: skip
    texts = {name: pa.array([fact.get(name) for fact in found], pa.string())
             for name in ("version", "fingerprint", "complete", "vectors")}  # fmt: skip
    connection.register("found", pa.table({"shard_id": pa.array(facts, pa.int64())} | numbers | texts))
    connection.execute(
        "insert into embedded_shards select ?, shard_id, num_embedded, num_failed, vectors from found order by shard_id",
        [embedding],
    )
    connection.execute(
        "update shards set num_bytes = found.num_bytes, version = found.version, num_samples = found.num_samples, "
        "fingerprint = found.fingerprint, complete = found.complete = 'yes' from found where found.shard_id = shards.shard_id"
    )
    connection.unregister("found")


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
            connection.execute(_SHARD_FAILED, [embedding, shard_id, problem])


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
