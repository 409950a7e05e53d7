"""`curate query`: read-only SQL on the catalog, or one of the saved queries."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from curate import resources, sets
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.memory import allowed

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_PARAMETER = re.compile(r"getvariable\('(\w+)'\)")
_CHOSEN = re.compile(r"\bchosen_(\w+)\(\)")  # the macros of views.sql, which look at a variable too


def query(
    catalog: Catalog | str | Path, sql: str, *, params: dict[str, str] | None = None, allow_files: bool = False
) -> "pa.Table":
    """The answer to SQL, or to the saved query of that name, as an Arrow table (`.to_pandas()`, `.to_pylist()`).

    `params` become DuckDB variables: `getvariable('scoring')` in the SQL. One SELECT can be asked, and it reads
    no file but the catalog's own vectors, unless `allow_files`. Raises CurateError with the database's reason.
    """
    with asking(catalog, sql, params, allow_files=allow_files) as (connection, text):
        return connection.sql(text).to_arrow_table()


def _text(sql: str) -> str:
    """SQL as it is; one word is the name of a saved query."""
    if sql.strip().replace("_", "").isalnum():
        return resources.find(resources.CATALOG / "queries", ".sql", sql.strip(), "saved query").read_text(encoding="utf-8")
    return sql


@contextlib.contextmanager
def asking(
    catalog: Catalog | str | Path, sql: str, params: dict[str, str] | None = None, *, allow_files: bool = False
) -> "Iterator[tuple[duckdb.DuckDBPyConnection, str]]":
    """A connection that can only read, with the parameters set, and the SQL: for answers that need not fit into memory."""
    import duckdb

    text, params = _text(sql), params or {}
    with Catalog(catalog).reading(guarded=not allow_files, memory=allowed()) as connection:
        try:
            sets.check_reads_only(connection, text)
            _check_params(connection, text, params)
            for name, value in params.items():
                connection.execute(f"set variable {name} = ?", [value])
            yield connection, text
        except duckdb.Error as error:
            raise CurateError(_explained(connection, str(error))) from error
        except RuntimeError as error:  # DuckDB's word for Ctrl-C
            if "interrupted" in str(error):
                raise KeyboardInterrupt from error
            raise


def _explained(connection: "duckdb.DuckDBPyConnection", message: str) -> str:
    """DuckDB's message in a line, with what to do about it."""
    first, *others = message.removeprefix("Invalid Input Error: ").splitlines()
    hint = next((line for line in others if line.startswith(("Candidate", "Did you mean"))), "")
    if "file system operations are disabled" in first:
        hint = "(--allow-files lets a query read files)"
    elif first.startswith("Catalog Error: Table"):
        found = connection.execute("select table_name from information_schema.tables order by 1").fetchall()
        hint = f"There are: {', '.join(name for (name,) in found)}"
    return " ".join(filter(None, (first, hint)))


def _check_params(connection: "duckdb.DuckDBPyConnection", text: str, params: dict[str, str]) -> None:
    """CurateError for a parameter that the text does not use, or that names a set that there is none of."""
    known = set(_PARAMETER.findall(text)) | set(_CHOSEN.findall(text))
    for name, value in params.items():
        if name not in known:
            there_are = f"; there are: {', '.join(sorted(known))}" if known else ": it has none"
            raise CurateError(f"--param {name}: the query has no such parameter{there_are}")
        if name in sets.HEADS and value not in sets.names(connection, name):
            found = ", ".join(sets.names(connection, name)) or f"none yet: make one with `{sets.HEADS[name][1]}`"
            raise CurateError(f"--param {name}={value}: no {name} is called so; there are: {found}")
