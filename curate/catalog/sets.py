"""Named sets in an open connection: find, list, replace; and the view `sample_scores`, which has a
column for each clustering and scoring, and those of `sample_columns`."""

import re
from typing import TYPE_CHECKING, Any, TypeVar

from curate.catalog.records import ClusteringRecord, ScoringRecord, SetRecord
from curate.catalog.sql import quote_identifier, quote_literal
from curate.errors import CurateError, OptionError

if TYPE_CHECKING:
    import duckdb

AnySet = TypeVar("AnySet", bound=SetRecord)

_NAME = re.compile(r"[A-Za-z0-9@_][A-Za-z0-9@_.,+=-]{0,127}")
# Clusterings and scorings are columns of the view sample_scores: (record, body table, its value).
_COLUMN_SETS = (
    (ClusteringRecord, "assignments", "cluster_id"),
    (ScoringRecord, "scores", "score"),
)


def check_name(name: str) -> str:
    """Names become folders and columns: letters, digits and @_.,+=- only. Raises OptionError."""
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"'{name}' cannot be a name: start with a letter, a digit, @ or _, and use only "
            "letters, digits and @ _ . , + = - (128 at most)"
        )
    return name


def find_set(
    connection: "duckdb.DuckDBPyConnection", record_type: type[AnySet], name: str
) -> AnySet | None:
    """The record of a set, or None."""
    columns = ", ".join(map(quote_identifier, record_type.columns()))
    # fetchall, because DuckDB refuses other work while a result is unread.
    rows = connection.execute(
        f"select {columns} from {record_type.table} where {record_type.kind} = ?", [name]
    ).fetchall()
    return record_type.from_row(rows[0]) if rows else None


def list_sets(connection: "duckdb.DuckDBPyConnection", record_type: type[SetRecord]) -> list[str]:
    """The names of all sets of a kind, oldest first."""
    rows = connection.execute(
        f"select {record_type.kind} from {record_type.table} order by run_id"
    ).fetchall()
    return [name for (name,) in rows]


def replace_set(connection: "duckdb.DuckDBPyConnection", record: SetRecord) -> None:
    """In an open transaction: delete the set of that name with its body, and insert the new row."""
    for table in (record.table, *record.body_tables):
        connection.execute(f"delete from {table} where {record.kind} = ?", [record.name])
    insert_row(connection, record.table, record.to_dict())


def insert_row(connection: "duckdb.DuckDBPyConnection", table: str, row: dict[str, Any]) -> None:
    """Insert one row by column names."""
    columns = ", ".join(map(quote_identifier, row))
    marks = ", ".join("?" for _ in row)
    connection.execute(f"insert into {table} ({columns}) values ({marks})", list(row.values()))


def check_column_name(
    connection: "duckdb.DuckDBPyConnection", record_type: type[SetRecord], name: str
) -> None:
    """CurateError where the name of a clustering or scoring is another column of sample_scores."""
    rows = connection.execute(
        "select column_name from duckdb_columns() where table_name = 'samples'"
    ).fetchall()
    taken = {column: "a column of every sample" for (column,) in [*rows, ("url",)]}
    rows = connection.execute("select column_name, source from column_sources").fetchall()
    taken |= {column.lower(): f"a column from {source}" for column, source in rows}
    for column_type, _, _ in _COLUMN_SETS:
        for other_name in list_sets(connection, column_type):
            if (column_type, other_name) != (record_type, name):
                taken[other_name.lower()] = f"a {column_type.kind}"
    if name.lower() in taken:
        raise CurateError(
            f"'{name}' is the name of {taken[name.lower()]} already: choose another --name"
        )


def refresh_sample_scores(connection: "duckdb.DuckDBPyConnection") -> None:
    """Replace the view `sample_scores`: a row per sample.

    After the columns of `samples` come those of `sample_columns`, clusterings and scorings.
    """
    rows = connection.execute("select column_name from column_sources order by rowid").fetchall()
    columns = [f", sample_columns.{quote_identifier(column)}" for (column,) in rows]
    joins: list[str] = []
    if columns:
        columns_join = " left join sample_columns on sample_columns.sample_id = samples.sample_id"
    else:
        columns_join = ""
    for record_type, table, value in _COLUMN_SETS:
        for name in sorted(list_sets(connection, record_type)):
            alias = f"set_{len(joins)}"
            columns.append(f", {alias}.{value} as {quote_identifier(name)}")
            joins.append(
                f" left join (select sample_id, {value} from {table} "
                f"where {record_type.kind} = {quote_literal(name)}) as {alias}"
                f" on {alias}.sample_id = samples.sample_id"
            )
    connection.execute(
        "create or replace view sample_scores as select samples.*, shards.url"
        f"{''.join(columns)} from samples join shards using (shard_id)"
        f"{columns_join}{''.join(joins)}"
    )
