"""Named sets in an open connection: find, list, replace; and the view `sample_scores`, which has a
column for each clustering, scoring and deduplication, and those of `sample_columns`."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from curate.catalog.provenance import canonical_json
from curate.catalog.records import (
    ClusteringRecord,
    DeduplicationRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.catalog.sql import quote_identifier, quote_literal
from curate.errors import CurateError, OptionError

if TYPE_CHECKING:
    import duckdb

AnySet = TypeVar("AnySet", bound=SetRecord)

_NAME = re.compile(r"[A-Za-z0-9@_][A-Za-z0-9@_.,+=-]{0,127}")
# Sets that are columns of the view sample_scores: (record, the rows of its body as SQL with the
# sample_id, the column's value for a sample). A sample that is in no group is no duplicate.
_COLUMN_SETS = (
    (ClusteringRecord, "select sample_id, cluster_id from assignments where {}", "cluster_id"),
    (ScoringRecord, "select sample_id, score from scores where {}", "score"),
    (
        DeduplicationRecord,
        "select distinct sample_id from duplicates where not stays and {}",
        "sample_id is not null",
    ),
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
    delete_set(connection, record)
    insert_row(connection, record.table, record.to_dict())


def delete_set(connection: "duckdb.DuckDBPyConnection", record: SetRecord) -> None:
    """In an open transaction: delete the set of that name with its body."""
    for table in (record.table, *record.body_tables):
        connection.execute(f"delete from {table} where {record.kind} = ?", [record.name])


def rename_set(connection: "duckdb.DuckDBPyConnection", record: SetRecord, new_name: str) -> None:
    """In an open transaction: give a set another name, wherever the catalog has its name.

    That is each column called as its kind, the sources of scorings, the runs that made it, and the
    arguments of those that read it. Conditions that users wrote stay as they are.
    """
    kind, name = record.kind, record.name
    run_ids = list_run_ids(connection, record)
    tables = connection.execute(
        "select table_name from duckdb_columns() join duckdb_tables() using (table_name) "
        "where column_name = ?",
        [kind],
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"update {table} set {kind} = ? where {kind} = ?", [new_name, name])
    connection.execute(
        "update runs set name = ? where run_id in (select unnest(?))", [new_name, run_ids]
    )
    readers = connection.execute(
        "select run_id, arguments from runs where list_has_any(parent_run_ids, ?)", [run_ids]
    ).fetchall()
    for run_id, arguments in readers:
        new_text = _rename_in_json(arguments, kind, name, new_name)
        connection.execute("update runs set arguments = ? where run_id = ?", [new_text, run_id])
    reader_ids = [run_id for run_id, _ in readers]
    connection.execute(
        "update scorings set source = ? where source = ? and run_id in (select unnest(?))",
        [new_name, name, reader_ids],
    )
    for table, column in (("scorings", "arguments"), ("validations", "setting")):
        rows = connection.execute(
            f"select run_id, {column} from {table} "
            f"where {column} is not null and run_id in (select unnest(?))",
            [reader_ids],
        ).fetchall()
        for run_id, text in rows:
            new_text = _rename_in_json(text, kind, name, new_name)
            connection.execute(
                f"update {table} set {column} = ? where run_id = ?", [new_text, run_id]
            )
    if kind == SelectionRecord.kind:  # --within is a condition of our own
        connection.execute(
            "update selections set where_sql = replace(where_sql, ?, ?)",
            [members_condition(name), members_condition(new_name)],
        )


def members_condition(selection: str) -> str:
    """The SQL condition that a sample is a member of a selection."""
    members = f"select sample_id from members where selection = {quote_literal(selection)}"
    return f"sample_id in ({members})"


def list_run_ids(connection: "duckdb.DuckDBPyConnection", record: SetRecord) -> list[int]:
    """The run that made a set and, of one that grew, those that made its earlier states."""
    rows = connection.execute(
        "with recursive states as ("
        "select run_id, stage, name, parent_run_ids from runs where run_id = $run_id "
        "union select parent.run_id, parent.stage, parent.name, parent.parent_run_ids "
        "from states join runs as parent on list_contains(states.parent_run_ids, parent.run_id) "
        "and parent.name = states.name "
        # Embeddings alone have earlier states: shards are added to them and removed.
        "and parent.stage in ('embed', 'remove') and states.stage in ('embed', 'remove')"
        ") select run_id from states order by 1",
        {"run_id": record.last_run_id},
    ).fetchall()
    return [run_id for (run_id,) in rows]


def list_update_run_ids(connection: "duckdb.DuckDBPyConnection", run_id: int) -> list[int]:
    """A run and, where it was an update, the runs before it back to the one that began anew."""
    rows = connection.execute(
        "with recursive states as ("
        "select run_id, arguments from runs where run_id = ? "
        "union select runs.run_id, runs.arguments from states "
        "join runs on runs.run_id = (states.arguments->>'update_of')::bigint"
        ") select run_id from states order by 1",
        [run_id],
    ).fetchall()
    return [state_id for (state_id,) in rows]


def list_dependents(
    connection: "duckdb.DuckDBPyConnection", records: Sequence[SetRecord]
) -> list[tuple[str, str]]:
    """The sets, by kind and name, that were made from any of these, directly or through others."""
    run_ids = [run_id for record in records for run_id in list_run_ids(connection, record)]
    rows = connection.execute(
        "with recursive descendants as ("
        "select run_id from runs where list_has_any(parent_run_ids, $run_ids) "
        "union select runs.run_id from runs join descendants "
        "on list_contains(runs.parent_run_ids, descendants.run_id)"
        ") select kind, name from named_sets where run_id in (from descendants) order by run_id",
        {"run_ids": run_ids},
    ).fetchall()
    own = {(record.kind, record.name) for record in records}
    return [(kind, name) for kind, name in rows if (kind, name) not in own]


def _rename_in_json(text: str, kind: str, name: str, new_name: str) -> str:
    """Arguments of a run, as JSON, with another name of a set that it read."""
    arguments: dict[str, Any] = json.loads(text)
    keys = {kind, f"{kind}s", "source", "given"} | (
        {"within"} if kind == SelectionRecord.kind else set()
    )
    for key in keys & arguments.keys():
        value = arguments[key]
        if isinstance(value, list):
            arguments[key] = [new_name if element == name else element for element in value]
        elif value == name:
            arguments[key] = new_name
    if kind == SelectionRecord.kind and arguments.get("where_sql"):
        condition = members_condition(name)
        arguments["where_sql"] = arguments["where_sql"].replace(
            condition, members_condition(new_name)
        )
    return canonical_json(arguments)


def insert_row(connection: "duckdb.DuckDBPyConnection", table: str, row: dict[str, Any]) -> None:
    """Insert one row by column names."""
    columns = ", ".join(map(quote_identifier, row))
    marks = ", ".join("?" for _ in row)
    connection.execute(f"insert into {table} ({columns}) values ({marks})", list(row.values()))


def check_column_name(
    connection: "duckdb.DuckDBPyConnection", record_type: type[SetRecord], name: str
) -> None:
    """CurateError where the name of a set is another column of sample_scores."""
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

    After the columns of `samples` come those of `sample_columns`, clusterings, scorings
    and deduplications.
    """
    rows = connection.execute("select column_name from column_sources order by rowid").fetchall()
    columns = [f", sample_columns.{quote_identifier(column)}" for (column,) in rows]
    joins: list[str] = []
    if columns:
        columns_join = " left join sample_columns on sample_columns.sample_id = samples.sample_id"
    else:
        columns_join = ""
    for record_type, body_sql, value in _COLUMN_SETS:
        for name in sorted(list_sets(connection, record_type)):
            alias = f"set_{len(joins)}"
            columns.append(f", {alias}.{value} as {quote_identifier(name)}")
            body = body_sql.format(f"{record_type.kind} = {quote_literal(name)}")
            joins.append(f" left join ({body}) as {alias} on {alias}.sample_id = samples.sample_id")
    connection.execute(
        "create or replace view sample_scores as select samples.*, shards.url"
        f"{''.join(columns)} from samples join shards using (shard_id)"
        f"{columns_join}{''.join(joins)}"
    )
