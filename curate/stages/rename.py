"""`curate rename`: give a set another name; what was made from it goes on to know it."""

import contextlib
from pathlib import Path
from typing import Annotated

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    SET_TYPES_BY_KIND,
    ClusteringRecord,
    EmbeddingRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError
from curate.options import Option, verb
from curate.progress import log
from curate.stages.embed.commit import commit_pending
from curate.stages.remove import check_unused, describe
from curate.stages.set_files import (
    delete_set_files,
    inner_catalogs,
    link_set_files,
    lock_set,
)


@verb()
def rename(
    catalog: Catalog | str | Path,
    kind: Annotated[str, Option("Kind of set.", choices=tuple(SET_TYPES_BY_KIND), metavar="KIND")],
    name: Annotated[str, Option("Its name.", metavar="NAME")],
    new_name: Annotated[str, Option("Its new name.", metavar="NEW")],
    *,
    force: Annotated[
        bool, Option("Even if conditions of selections (--where) have the old name.")
    ] = False,
) -> str:
    """Give a set another name, and return it.

    Sets that were made from it are not out of date: the catalog has the new name wherever it had
    the old one. But a command that names the set makes its own set again, because its options are
    others. A name in the condition of a selection (`--where`) stays as it was written: then
    `force` is needed, and the selection cannot be drawn again. Manifests of exports keep the old
    name. Raises CurateError where there is no such set, or one of the new name.
    """
    catalog, record_type = Catalog(catalog), SET_TYPES_BY_KIND[kind]
    sets.check_name(new_name)
    record = catalog.require(record_type, name)
    if new_name == name:
        log.info("nothing to do: it has this name already")
        return name
    check_unused(catalog, [record])
    _check_is_free(catalog, record_type, new_name)
    with catalog.reading() as connection:
        dependents = sets.list_dependents(connection, [record])
    if isinstance(record, ClusteringRecord | ScoringRecord):
        _check_conditions(catalog, name, force=force)
    with contextlib.ExitStack() as locks:
        for locked_name in (name, new_name):
            locks.enter_context(lock_set(catalog, kind, locked_name))
        if isinstance(record, EmbeddingRecord):
            commit_pending(catalog, name)
            _rename_in_inner_catalogs(catalog, name, new_name)
        columns = link_set_files(catalog, record, new_name)
        _rename_rows(catalog, record, new_name, columns)
        delete_set_files(catalog, kind, name)
    log.info("the %s '%s' is called '%s' now", kind, name, new_name)
    if dependents:
        log.info("made from it: %s", describe(dependents))
    return new_name


def _check_is_free(catalog: Catalog, record_type: type[SetRecord], name: str) -> None:
    if catalog.find(record_type, name):
        raise CurateError(
            f"there is a {record_type.kind} called '{name}' already: choose another name, "
            f"or remove it first (curate remove {record_type.kind} {name})"
        )
    if issubclass(record_type, ClusteringRecord | ScoringRecord):
        catalog.check_column_name(record_type, name)


def _check_conditions(catalog: Catalog, name: str, *, force: bool) -> None:
    """CurateError, unless `force`, where a selection's condition may mean this column."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select selection from selections where contains(lower(where_sql), lower(?)) "
            "order by run_id",
            [name],
        ).fetchall()
    if not rows:
        return
    selections = describe([(SelectionRecord.kind, selection) for (selection,) in rows])
    if not force:
        raise CurateError(
            f"'{name}' stands in the condition (--where) of {selections}, which would not be "
            "true any more: give --force, or another name to the new set instead"
        )
    log.warning("%s has the old name in its condition, and cannot be drawn again", selections)


def _rename_in_inner_catalogs(catalog: Catalog, name: str, new_name: str) -> None:
    """The vectors of test shards are looked for under the embedding's name."""
    for inner in inner_catalogs(catalog):
        names = inner.list_names(EmbeddingRecord)
        if name in names and new_name not in names:  # else done before a kill
            rename(inner, EmbeddingRecord.kind, name, new_name)


def _rename_rows(
    catalog: Catalog, record: SetRecord, new_name: str, columns: dict[str, str]
) -> None:
    """In one transaction: the name everywhere, and columns that say where files are."""
    with catalog.writing() as connection:
        if sets.find_set(connection, type(record), new_name):  # made meanwhile
            raise CurateError(f"there is a {record.kind} called '{new_name}' already")
        sets.rename_set(connection, record, new_name)
        for column, value in columns.items():
            connection.execute(
                f"update {record.table} set {quote_identifier(column)} = ? where {record.kind} = ?",
                [value, new_name],
            )
        sets.refresh_sample_scores(connection)
