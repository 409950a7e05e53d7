"""`curate query`: read-only SQL on the catalog, or one of the saved queries."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from curate import resources
from curate.catalog import Catalog
from curate.errors import CurateError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def query(catalog: Catalog | str | Path, sql: str, *, params: dict[str, str] | None = None) -> "pa.Table":
    """The answer to SQL, or to the saved query of that name, as an Arrow table (`.to_pandas()`, `.to_pylist()`).

    `params` become DuckDB variables: `getvariable('scoring')` in the SQL. The connection can only read,
    and no file but the catalog's own vectors. Raises CurateError with the database's reason.
    """
    with _asking(catalog, params) as connection:
        return connection.sql(_text(sql)).to_arrow_table()


@contextlib.contextmanager
def answering(
    catalog: Catalog | str | Path, sql: str, params: dict[str, str] | None = None
) -> "Iterator[duckdb.DuckDBPyConnection]":
    """The same as a cursor, whose rows need not fit into memory."""
    with _asking(catalog, params) as connection:
        yield connection.execute(_text(sql))


def _text(sql: str) -> str:
    """SQL as it is; one word is the name of a saved query."""
    if sql.strip().replace("_", "").isalnum():
        return resources.find(resources.CATALOG / "queries", ".sql", sql.strip(), "saved query").read_text(encoding="utf-8")
    return sql


@contextlib.contextmanager
def _asking(catalog: Catalog | str | Path, params: dict[str, str] | None) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A guarded connection with the variables set; the database's errors become CurateError."""
    import duckdb

    with Catalog(catalog).reading(guarded=True) as connection:
        try:
            for name, value in (params or {}).items():
                if not name.isidentifier():
                    raise CurateError(f"--param {name}: a name has letters, digits and _ only")
                connection.execute(f"set variable {name} = ?", [value])
            yield connection
        except duckdb.Error as error:
            lines = str(error).splitlines()
            hint = next((line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))), "")
            raise CurateError(" ".join(filter(None, (lines[0], hint)))) from error
