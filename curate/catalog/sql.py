"""Text that users write into SQL: what of it may run, and how names and values are quoted."""

import glob
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import CurateError

if TYPE_CHECKING:
    import duckdb


def quote_literal(text: str) -> str:
    """A text as an SQL literal, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def quote_identifier(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_patterns(paths: Iterable[Path]) -> list[str]:
    """Paths for read_parquet, which takes * ? and [ for patterns."""
    return [glob.escape(str(path)) for path in paths]


def check_reads_only(connection: "duckdb.DuckDBPyConnection", text: str) -> None:
    """CurateError unless the text is one SELECT, which can write nothing.

    A read-only connection alone is not enough: it can still COPY to files.
    """
    import duckdb

    types = [statement.type for statement in connection.extract_statements(text)]
    if types != [duckdb.StatementType.SELECT]:
        raise CurateError("only one SELECT can be asked (DESCRIBE, SUMMARIZE and FROM too)")


def check_is_condition(connection: "duckdb.DuckDBPyConnection", text: str) -> None:
    """CurateError unless the text is one expression, by DuckDB's own parser.

    It is parsed in brackets of two kinds: a text that closes one kind, to go on outside of it, does
    not close the other. Within them neither a second statement nor a LIMIT can stand, and a cast
    takes neither a list nor nothing.
    """
    if not text.strip():
        raise CurateError("it is empty")
    for column in (f"cast({text}\n as boolean)", f"[{text}\n]"):
        ((serialized,),) = connection.execute(
            "select json_serialize_sql(?)", [f"select {column}"]
        ).fetchall()
        tree = json.loads(serialized)
        if tree["error"]:
            raise CurateError(f"it is no condition ({tree['error_message'].splitlines()[0]})")
