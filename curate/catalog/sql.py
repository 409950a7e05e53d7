"""Text that users write into SQL: what of it may run, and how names and values are quoted."""

import json
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

    A bracket in it may not close one of ours.
    """
    ((serialized,),) = connection.execute(
        "select json_serialize_sql(?)", [f"select ({text}\n)"]
    ).fetchall()
    tree = json.loads(serialized)
    if tree["error"]:
        raise CurateError(tree["error_message"])
    (statement,) = tree["statements"]
    node = statement["node"]
    is_expression = (
        node["type"] == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and not node["modifiers"]
        and len(node["select_list"]) == 1
    )
    if not is_expression:
        raise CurateError("it is no condition")
