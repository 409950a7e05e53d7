"""Columns of samples beside those that every sample has: fields of .json members, imported tables.

They are in one wide table, `sample_columns`, to which columns are added, and in the view
`sample_scores`. `column_sources` says where each comes from.
"""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from curate.catalog import sets
from curate.catalog.records import ColumnRecord
from curate.catalog.sql import quote_identifier
from curate.formats.json_fields import FieldType, widen
from curate.progress import log

if TYPE_CHECKING:
    import duckdb

JSON_SOURCE = "json"
SQL_TYPES = {"int": "bigint", "double": "double", "bool": "boolean", "text": "text", "json": "json"}
NUMERIC_TYPES = ("int", "double")
_MAX_NAME = 128


def list_columns(
    connection: "duckdb.DuckDBPyConnection", source: str | None = None
) -> list[ColumnRecord]:
    """The columns, of one source or of all, in the order in which they were added."""
    rows = connection.execute(
        f"select {', '.join(ColumnRecord._fields)} from column_sources "
        "where source = coalesce(?, source) order by rowid",
        [source],
    ).fetchall()
    return [ColumnRecord(*row) for row in rows]


def add_columns(
    connection: "duckdb.DuckDBPyConnection", source: str, fields: Iterable[FieldType], run_id: int
) -> dict[str, ColumnRecord]:
    """In an open transaction: make a column for each field that has none, and widen the others.

    Returns the columns of these fields by their paths. A field whose name is taken in
    `sample_scores` becomes SOURCE.NAME. What was renamed or widened is logged.
    """
    columns = {column.field: column for column in list_columns(connection, source)}
    taken = _taken_names(connection)
    new_names: list[str] = []
    for field in fields:
        column = columns.get(field.path)
        if column is None:
            name = _free_name(field.path, source, taken)
            taken.add(name.lower())
            if name != field.path:
                new_names.append(name)
            column = ColumnRecord(name, source, field.path, field.type, run_id)
            sets.insert_row(connection, "column_sources", column._asdict())
            connection.execute(
                f"alter table sample_columns add column {quote_identifier(name)} "
                f"{SQL_TYPES[field.type]}"
            )
        elif (wide := widen(column.type, field.type)) != column.type:
            _widen_column(connection, column, wide)
            column = column._replace(type=wide)
        columns[field.path] = column
    if new_names:
        log.warning("columns whose names are taken are called %s", ", ".join(map(repr, new_names)))
    return columns


def insert_values(
    connection: "duckdb.DuckDBPyConnection",
    columns: dict[ColumnRecord, tuple[str, str]],
    relation: str,
    bounds: tuple[int, int] | None = None,
) -> None:
    """In an open transaction: set the columns of samples that are in `samples`.

    `relation` is SQL with a row per sample; `columns` maps each column to an expression on that row
    and its type. `bounds` are the first id and the one after the last: where there are no rows yet,
    they are inserted, which is faster than a merge.
    """
    first, stop = bounds or (0, 1 << 62)
    names = [quote_identifier(column.column_name) for column in columns]
    values = [
        f"{_cast(expression, value_type, column.type)} as {quote_identifier(column.column_name)}"
        for column, (expression, value_type) in columns.items()
    ]
    incoming = (
        f"select {', '.join(['incoming.sample_id', *values])} from {relation} as incoming "
        f"semi join (select sample_id from samples where sample_id >= {first} "
        f"and sample_id < {stop}) as known using (sample_id)"
    )
    all_names = ", ".join(["sample_id", *names])
    exist = connection.execute(
        "select 1 from sample_columns where sample_id >= ? and sample_id < ? limit 1",
        [first, stop],
    ).fetchall()
    if not exist:
        connection.execute(
            f"insert into sample_columns ({all_names}) {incoming} order by sample_id"
        )
        return
    updates = ", ".join(f"{name} = incoming.{name}" for name in names) or "sample_id = sample_id"
    inserted = ", ".join(f"incoming.{name}" for name in ["sample_id", *names])
    connection.execute(
        f"merge into sample_columns using ({incoming}) as incoming "
        "on sample_columns.sample_id = incoming.sample_id "
        f"when matched then update set {updates} "
        f"when not matched then insert ({all_names}) values ({inserted})"
    )


def drop_columns(connection: "duckdb.DuckDBPyConnection", source: str) -> None:
    """In an open transaction: remove the columns of a source; `refresh_sample_scores` follows."""
    for column in list_columns(connection, source):
        name = quote_identifier(column.column_name)
        connection.execute(f"alter table sample_columns drop column {name}")
    connection.execute("delete from column_sources where source = ?", [source])
    if source == JSON_SOURCE:
        connection.execute("delete from column_shards")


def delete_shard_columns(connection: "duckdb.DuckDBPyConnection", shard_id: int) -> None:
    """In an open transaction: remove what is stored of a shard's samples."""
    connection.execute("delete from sample_columns where sample_id >> 24 = ?", [shard_id])
    connection.execute("delete from column_shards where shard_id = ?", [shard_id])


def read_requests(
    connection: "duckdb.DuckDBPyConnection",
) -> dict[int, str | list[str]]:
    """Which fields of the .json members were read, by shard: `all`, or their paths; newest last."""
    rows = connection.execute(
        "select shard_id, fields from column_shards order by rowid"
    ).fetchall()
    return {shard_id: json.loads(fields) for shard_id, fields in rows}


def as_identifier(name: str) -> str:
    """The name of a column as a parameter of a Python function can have it: a_b_c for a.b.c."""
    return re.sub(r"\W", "_", name)


def _taken_names(connection: "duckdb.DuckDBPyConnection") -> set[str]:
    rows = connection.execute(
        "select column_name from duckdb_columns() "
        "where table_name in ('samples', 'sample_columns', 'sample_scores')"
    ).fetchall()
    return {name.lower() for (name,) in rows}


def _free_name(path: str, source: str, taken: set[str]) -> str:
    """The path without what no name can hold; with the source before it where it is taken."""
    name = re.sub(r"[\x00-\x1f\x7f]", "_", path)[:_MAX_NAME] or "_"
    candidates = [name, f"{source}.{name}"]
    candidates += [f"{source}.{name}_{number}" for number in range(2, len(taken) + 4)]
    return next(candidate for candidate in candidates if candidate.lower() not in taken)


def _widen_column(
    connection: "duckdb.DuckDBPyConnection", column: ColumnRecord, wide_type: str
) -> None:
    name = quote_identifier(column.column_name)
    connection.execute(
        f"alter table sample_columns alter column {name} type {SQL_TYPES[wide_type]} "
        f"using {_cast(name, column.type, wide_type)}"
    )
    connection.execute(
        "update column_sources set type = ? where column_name = ?", [wide_type, column.column_name]
    )
    log.warning(
        "the column '%s' has values of several types: it is %s from now on",
        column.column_name,
        wide_type,
    )


def _cast(expression: str, value_type: str, column_type: str) -> str:
    """An expression of one type in a column of another, as `json_fields.to_text` writes texts."""
    if value_type == "double" and column_type == "text":
        return (
            f"case when abs({expression}) < 1e15 and {expression} = trunc({expression}) "
            f"then ({expression})::bigint::text else ({expression})::text end"
        )
    if value_type == column_type != "json":
        return expression
    return f"({expression})::{SQL_TYPES[column_type]}"
