"""`curate remove`: take sets out of a catalog, or shards out of the corpus, and give back space.

Rows go first, in one transaction, and files afterwards. A kill between the two leaves files that
nothing refers to, and the same command again removes them.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from curate.catalog import runs, sets
from curate.catalog.catalog import Catalog
from curate.catalog.columns import delete_shard_columns
from curate.catalog.compaction import compact
from curate.catalog.records import SET_TYPES_BY_KIND, EmbeddingRecord, ExportRecord, SetRecord
from curate.errors import CurateError, OptionError
from curate.formats.sample_ids import SHARD_FILES, captions_folder, shard_filename
from curate.formatting import count_of
from curate.options import Option, verb
from curate.progress import log
from curate.stages.embed.commit import commit_pending
from curate.stages.embed.pending import list_pending
from curate.stages.set_files import delete_set_files, inner_catalogs, lock_set
from curate.storage import files
from curate.storage.credentials import hide_credentials

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHARDS = "shards"
_MAX_SHOWN = 8  # sets in a message

Force = Annotated[bool, Option("Even if other sets depend on it; these are out of date then.")]


@verb()
def remove(
    catalog: Catalog | str | Path,
    kind: Annotated[
        str, Option("Kind of set, or shards.", choices=(*SET_TYPES_BY_KIND, SHARDS), metavar="KIND")
    ],
    names: Annotated[
        list[str] | str,
        Option(
            "Names of sets; or shards by path, folder, glob, brace range or URL, whether or not "
            "they still exist.",
            metavar="NAME",
        ),
    ],
    *,
    force: Force = False,
) -> list[str]:
    """Remove sets of a kind, or shards, with all that the catalog stores of them.

    Sets that were made from them stay with `force`, and are out of date; without it, nothing is
    removed while there are any. A removed embedding goes with its test shards' vectors. A removed
    export leaves its folder, which is yours. Removed shards stay where they are: they are taken out
    of the corpus, with their samples and vectors. The rows of `runs` stay, as the history of other
    sets. The database file shrinks where a tenth of it or more has become free. Returns the names,
    or the URLs of the shards. Raises CurateError where one does not exist, or is in use.
    """
    catalog = Catalog(catalog)
    name_list = [names] if isinstance(names, str) else list(names)
    if not name_list:
        raise OptionError(f"nothing to remove: give the names of {kind} sets")
    if kind == SHARDS:
        removed = _remove_shards(catalog, name_list, force=force)
    else:
        removed = _remove_sets(catalog, SET_TYPES_BY_KIND[kind], name_list, force=force)
    compact(catalog.database_path)
    return removed


# -- sets ------------------------------------------------------------------------------------------


def _remove_sets(
    catalog: Catalog, record_type: type[SetRecord], names: list[str], *, force: bool
) -> list[str]:
    kind = record_type.kind
    names = list(dict.fromkeys(map(sets.check_name, names)))
    with contextlib.ExitStack() as locks:
        for name in names:
            locks.enter_context(lock_set(catalog, kind, name))
        records = []
        for name in names:
            record = catalog.find(record_type, name)
            if record is None and not delete_set_files(catalog, kind, name):
                catalog.require(record_type, name)  # which says what there is
            if record is not None:
                records.append(record)
        check_unused(catalog, records)
        _check_no_dependents(catalog, records, force=force)
        if kind == EmbeddingRecord.kind:
            _remove_from_inner_catalogs(catalog, names)
        for record in records:
            _remove_set(catalog, record)
    for record in records:
        if isinstance(record, ExportRecord) and files.is_folder(record.path):
            log.info("the folder of '%s' stays: %s", record.name, record.path)
    log.info("removed %s", describe([(kind, name) for name in names]))
    return names


def _remove_set(catalog: Catalog, record: SetRecord) -> None:
    """Remove a set's rows, then its files, as one run."""
    if isinstance(record, EmbeddingRecord):
        # Files of shards that are not committed would otherwise count as the next embedding's.
        files.delete_files(list_pending(catalog.embedding_folder(record.name)))
    arguments = {"kind": record.kind, "name": record.name}
    with catalog.record_run("remove", record.name, arguments, parents=[record.last_run_id]):
        with catalog.writing() as connection:
            sets.delete_set(connection, record)
            sets.refresh_sample_scores(connection)
        delete_set_files(catalog, record.kind, record.name)


def _remove_from_inner_catalogs(catalog: Catalog, embeddings: list[str]) -> None:
    """The vectors of test shards, which another embedding of that name could not use."""
    for inner in inner_catalogs(catalog):
        existing = set(inner.list_names(EmbeddingRecord)) & set(embeddings)
        if existing:
            remove(inner, EmbeddingRecord.kind, sorted(existing), force=True)


def _check_no_dependents(
    catalog: Catalog, records: list[SetRecord], *, force: bool, subject: str | None = None
) -> None:
    """Say which sets were made from these. Raises CurateError unless `force`."""
    with catalog.reading() as connection:
        dependents = sets.list_dependents(connection, records)
    if not dependents:
        return
    subject = subject or describe([(record.kind, record.name) for record in records])
    if not force:
        raise CurateError(
            f"from {subject} these were made: {describe(dependents)}; nothing was removed: "
            "remove them first, or give --force, which leaves them out of date"
        )
    log.warning("out of date now, made from %s: %s", subject, describe(dependents))


def check_unused(catalog: Catalog, records: list[SetRecord]) -> None:
    """CurateError where a command is at work on one of the sets, or reads it."""
    with catalog.writing() as connection:
        runs.mark_killed(connection)
        run_ids = [run_id for record in records for run_id in sets.list_run_ids(connection, record)]
        running = runs.list_running(connection, [record.name for record in records], run_ids)
    for run in running:
        raise CurateError(
            f"`curate {run.stage}` is at work on '{run.name}' (process {run.process} on "
            f"{run.host}): wait until it ends, or stop it"
        )


def describe(kinds_and_names: list[tuple[str, str]]) -> str:
    """Sets in a message: the selection 'a', the export 'b'."""
    shown = [f"the {kind} '{name}'" for kind, name in kinds_and_names[:_MAX_SHOWN]]
    more = len(kinds_and_names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


# -- shards ----------------------------------------------------------------------------------------


def _remove_shards(catalog: Catalog, patterns: list[str], *, force: bool) -> list[str]:
    with catalog.reading() as connection:
        rows = connection.execute("select shard_id, url from shards order by shard_id").fetchall()
    urls: dict[int, str] = {}
    for pattern in patterns:
        matches = _find_matches(pattern, dict(rows))
        if not matches:
            raise CurateError(
                f"no shard of the catalog matches '{pattern}': `curate query shards` lists them"
            )
        urls |= matches
    records = _find_embeddings(catalog, list(urls))
    subject = f"{count_of(len(urls), 'shard')} of these embeddings"
    check_unused(catalog, records)
    _check_no_dependents(catalog, records, force=force, subject=subject)
    with contextlib.ExitStack() as locks:
        for record in records:
            locks.enter_context(lock_set(catalog, record.kind, record.name))
            commit_pending(catalog, record.name)
        _delete_shards(catalog, records, urls)
        for record in records:
            _delete_orphaned_files(catalog, record.name)
    log.info("removed %s from the corpus", count_of(len(urls), "shard"))
    return list(urls.values())


def _find_matches(pattern: str, urls: dict[int, str]) -> dict[int, str]:
    """The shards, by id, that a pattern names; files need not exist."""
    from braceexpand import braceexpand

    try:
        expanded = list(braceexpand(pattern.removeprefix("file://")))
    except ValueError as error:
        raise CurateError(f"'{pattern}' is no brace pattern: {error}") from error
    expressions = [
        re.compile(_glob_to_regex(_normalize(plain_pattern))) for plain_pattern in expanded
    ]
    return {
        shard_id: url
        for shard_id, url in urls.items()
        if any(expression.fullmatch(url) for expression in expressions)
    }


def _normalize(pattern: str) -> str:
    """A pattern with an absolute path, as URLs of shards are."""
    if files.is_url(pattern):
        return hide_credentials(pattern).rstrip("/")
    return os.path.abspath(os.path.expanduser(pattern))


def _glob_to_regex(pattern: str) -> str:
    """As globs match files: * and ? are within one folder; a folder stands for the shards in it."""
    regex = ""
    for word in re.split(r"(\*+|\?|\[!?[^\]/]+\])", pattern):
        if word.startswith("*"):
            regex += "[^/]*"
        elif word == "?":
            regex += "[^/]"
        elif word.startswith("[") and word.endswith("]"):
            regex += word.replace("[!", "[^", 1).replace("\\", r"\\")
        else:
            regex += re.escape(word)
    return f"{regex}(/[^/]*)?"


def _find_embeddings(catalog: Catalog, shard_ids: list[int]) -> list[SetRecord]:
    """The embeddings that hold any of these shards, or failed at them."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select embedding from embeddings where embedding in ("
            "select embedding from embedded_shards where shard_id in (select unnest($1)) "
            "union select embedding from failures where shard_id in (select unnest($1))) "
            "order by run_id",
            [shard_ids],
        ).fetchall()
    return [catalog.require(EmbeddingRecord, embedding) for (embedding,) in rows]


def _delete_shards(catalog: Catalog, records: list[SetRecord], urls: dict[int, str]) -> None:
    """The rows of shards, in one transaction.

    Embeddings that had samples of them have another content now: a new run says so, which makes
    what was made from them out of date.
    """
    with contextlib.ExitStack() as open_runs:
        run_ids = {}
        for record in records:
            run_ids[record.name] = open_runs.enter_context(_record_removal(catalog, record, urls))
        with catalog.writing() as connection:
            _delete_shard_rows(connection, list(urls), run_ids)


def _record_removal(catalog: Catalog, record: SetRecord, urls: dict[int, str]) -> Any:
    """A run as the one that made the embedding: its arguments still say by which encoder."""
    with catalog.reading() as connection:
        ((fingerprint, code_checksum),) = connection.execute(
            "select any_value(fingerprint), any_value(code_checksum) from runs where run_id = ?",
            [record.last_run_id],
        ).fetchall()
    arguments = catalog.run_arguments(record.last_run_id)
    return catalog.record_run(
        "remove",
        record.name,
        {**arguments, "shards": sorted(urls.values())},
        parents=[record.last_run_id],
        fingerprint=fingerprint,
        code_checksum=code_checksum,
    )


def _delete_shard_rows(
    connection: "DuckDBPyConnection", shard_ids: list[int], run_ids: dict[str, int]
) -> None:
    for embedding, run_id in run_ids.items():
        connection.execute(
            "update embeddings set run_id = ? where embedding = ? and embedding in "
            "(select embedding from embedded_shards where shard_id in (select unnest(?)))",
            [run_id, embedding, shard_ids],
        )
    for shard_id in shard_ids:
        delete_shard_columns(connection, shard_id)
    for table in ("samples", "failures", "embedded_shards", "shards"):
        connection.execute(f"delete from {table} where shard_id in (select unnest(?))", [shard_ids])


def _delete_orphaned_files(catalog: Catalog, embedding: str) -> None:
    """Files with vectors of shards that the embedding does not have, of killed removals too."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id from embedded_shards where embedding = ?", [embedding]
        ).fetchall()
    in_use = {shard_filename(shard_id) for (shard_id,) in rows}
    folder = catalog.embedding_folder(embedding)
    for location in (folder, captions_folder(folder)):
        files.delete_files(
            file
            for file in files.list_files(location, SHARD_FILES)
            if files.filename(file) not in in_use
        )
