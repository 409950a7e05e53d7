"""`curate query`: read-only SQL on the catalog, or one of the saved queries."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import SET_TYPES_BY_KIND
from curate.catalog.sql import check_reads_only
from curate.errors import CurateError, OptionError
from curate.execution.limits import memory_limit
from curate.options import Option, verb
from curate.package_data import SQL_DIR, find_file

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_PARAMETER = re.compile(r"getvariable\('(\w+)'\)")
_DEFAULT_MACRO = re.compile(r"\bdefault_(\w+)\(\)")  # of views.sql, which look at a variable too

Sql = Annotated[str, Option("SQL, or a name from `curate list queries`.", metavar="SQL|NAME")]
QueryParameters = Annotated[
    dict[str, str] | None,
    Option(
        "A parameter of a saved query; repeatable.",
        metavar="NAME=VALUE",
        flag="--param",
        short="-p",
    ),
]
AllowFiles = Annotated[
    bool, Option("Let the SQL read other files too, by read_parquet('FILE') and the like.")
]


@verb()
def query(
    catalog: Catalog | str | Path,
    sql: Sql,
    *,
    params: QueryParameters = None,
    allow_files: AllowFiles = False,
) -> "pa.Table":
    """The answer to SQL, or to the saved query of that name, as an Arrow table.

    `params` become DuckDB variables: `getvariable('scoring')` in the SQL. One SELECT can be asked,
    and it reads no file but the catalog's own vectors, unless `allow_files`. Raises CurateError
    with the database's reason.
    """
    with open_query(catalog, sql, params, allow_files=allow_files) as (connection, text):
        return connection.sql(text).to_arrow_table()


@contextlib.contextmanager
def open_query(
    catalog: Catalog | str | Path,
    sql: str,
    params: dict[str, str] | None = None,
    *,
    allow_files: bool = False,
) -> "Iterator[tuple[duckdb.DuckDBPyConnection, str]]":
    """A connection that can only read, with the parameters set, and the SQL.

    For answers that need not fit into memory.
    """
    import duckdb

    text, params = _resolve_sql(sql), params or {}
    catalog = Catalog(catalog)
    with catalog.reading(sandboxed=not allow_files, memory=memory_limit()) as connection:
        try:
            check_reads_only(connection, text)
            _check_params(connection, text, params)
            for name, value in params.items():
                connection.execute(f"set variable {name} = ?", [value])
            yield connection, text
        except duckdb.Error as error:
            raise CurateError(_explain_error(connection, str(error))) from error
        except RuntimeError as error:  # DuckDB's type for Ctrl-C
            if "interrupted" in str(error):
                raise KeyboardInterrupt from error
            raise


def _resolve_sql(sql: str) -> str:
    """SQL as it is; one word is the name of a saved query."""
    name = sql.strip()
    if not name.replace("_", "").isalnum():
        return sql
    path = find_file(SQL_DIR / "queries", ".sql", name, "saved query")
    return path.read_text(encoding="utf-8")


def _explain_error(connection: "duckdb.DuckDBPyConnection", message: str) -> str:
    """DuckDB's message in a line, with what to do about it."""
    first, *lines = message.removeprefix("Invalid Input Error: ").splitlines()
    hint = next((line for line in lines if line.startswith(("Candidate", "Did you mean"))), "")
    if "file system operations are disabled" in first:
        hint = "(--allow-files lets a query read files)"
    elif first.startswith("Catalog Error: Table"):
        tables = connection.execute(
            "select table_name from information_schema.tables order by 1"
        ).fetchall()
        hint = f"There are: {', '.join(name for (name,) in tables)}"
    return " ".join(filter(None, (first, hint)))


def _check_params(
    connection: "duckdb.DuckDBPyConnection", text: str, params: dict[str, str]
) -> None:
    """CurateError for a parameter that the text does not use, or that names no set."""
    names = set(_PARAMETER.findall(text)) | set(_DEFAULT_MACRO.findall(text))
    for name, value in params.items():
        if name not in names:
            hint = f"; there are: {', '.join(sorted(names))}" if names else ": it has none"
            raise OptionError(f"--param {name}: the query has no such parameter{hint}")
        if name in SET_TYPES_BY_KIND:
            record_type = SET_TYPES_BY_KIND[name]
            existing = sets.list_sets(connection, record_type)
            if value not in existing:
                available = (
                    ", ".join(existing) or f"none yet: make one with `{record_type.command}`"
                )
                raise CurateError(
                    f"--param {name}={value}: no {name} is called so; there are: {available}"
                )
