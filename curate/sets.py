"""Named sets: what every stage makes. One row in a head table says how; the body tables hold the rest."""

import re
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError

if TYPE_CHECKING:
    import duckdb

# The head table of each kind of set, and the command that makes one.
HEADS = {
    "embedding": ("embeddings", "curate embed SHARDS"),
    "clustering": ("clusterings", "curate cluster"),
    "probe": ("probes", "curate probe"),
    "scoring": ("scorings", "curate score METRIC"),
    "selection": ("selections", "curate select --keep F"),
    "validation": ("validations", "curate validate"),
    "fit": ("fits", "curate fit"),
    "export": ("exports", "curate export SELECTION OUT"),
}
_NAME = re.compile(r"[A-Za-z0-9@_][A-Za-z0-9@_.,+=-]{0,127}")
# Clusterings and scorings are columns of the view sample_scores, beside those of samples and the url.
_COLUMNS = {"clustering": ("assignments", "cluster_id"), "scoring": ("scores", "score")}


def check_name(name: str) -> str:
    """Names become folders and columns: letters, digits and @_.,+=- only. Raises CurateError."""
    if not _NAME.fullmatch(name):
        raise CurateError(f"'{name}' cannot be a name: use letters, digits and @ _ . , + = - (128 at most), not first a dot")
    return name


def head(connection: "duckdb.DuckDBPyConnection", kind: str, name: str) -> dict[str, Any] | None:
    """The head row of a set, or None."""
    cursor = connection.execute(f"select * from {HEADS[kind][0]} where {kind} = ?", [name])
    columns, rows = [column[0] for column in cursor.description or []], cursor.fetchall()
    return dict(zip(columns, rows[0], strict=True)) if rows else None


def names(connection: "duckdb.DuckDBPyConnection", kind: str) -> list[str]:
    """The names of all sets of a kind, oldest first."""
    return [name for (name,) in connection.execute(f"select {kind} from {HEADS[kind][0]} order by run_id").fetchall()]


def replace(connection: "duckdb.DuckDBPyConnection", kind: str, body: str | None, row: dict[str, Any]) -> None:
    """In an open transaction: forget the set of that name, its body too, and put in the new head row."""
    for table in filter(None, (HEADS[kind][0], body)):
        connection.execute(f"delete from {table} where {kind} = ?", [row[kind]])
    insert(connection, HEADS[kind][0], row)


def insert(connection: "duckdb.DuckDBPyConnection", table: str, row: dict[str, Any]) -> None:
    """Insert one row by column names."""
    marks = ", ".join("?" for _ in row)
    connection.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", list(row.values()))


def check_column(connection: "duckdb.DuckDBPyConnection", kind: str, name: str) -> str:
    """A new clustering's or scoring's name must not be taken as a column of sample_scores. Raises CurateError."""
    rows = connection.execute("select column_name from duckdb_columns() where table_name = 'samples'").fetchall()
    taken = {column: "a column of every sample" for (column,) in [*rows, ("url",)]}
    for other in _COLUMNS:
        taken |= {found.lower(): f"a {other}" for found in names(connection, other) if (other, found) != (kind, name)}
    if name.lower() in taken:
        raise CurateError(f"'{name}' is the name of {taken[name.lower()]} already: choose another --name")
    return name


def refresh_sample_scores(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make the wide view `sample_scores` anew: a row a sample, a column for each clustering and each scoring."""
    columns: list[str] = []
    joins: list[str] = []
    for kind, (table, value) in _COLUMNS.items():
        for name in sorted(names(connection, kind)):
            alias = f"set_{len(joins)}"
            columns.append(f", {alias}.{value} as {quote(name)}")
            joins.append(
                f" left join (select sample_id, {value} from {table} where {kind} = {literal(name)}) as {alias}"
                f" on {alias}.sample_id = samples.sample_id"
            )
    connection.execute(
        "create or replace view sample_scores as select samples.*, shards.url"
        f"{''.join(columns)} from samples join shards using (shard_id){''.join(joins)}"
    )


def check_reads_only(connection: "duckdb.DuckDBPyConnection", text: str) -> None:
    """CurateError unless the text is one SELECT, which can write nothing; a read-only connection can still COPY to files."""
    import duckdb

    kinds = [statement.type for statement in connection.extract_statements(text)]
    if kinds != [duckdb.StatementType.SELECT]:
        raise CurateError("only one SELECT can be asked (DESCRIBE, SUMMARIZE and FROM too)")


def literal(text: str) -> str:
    """A text as an SQL literal, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
