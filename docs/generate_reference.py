"""Write docs/commands.md and docs/tables.md from the code: `python docs/generate_reference.py`.

A test compares the files with what this writes, so that they cannot go stale.
"""

import inspect
import re
from pathlib import Path

from curate.cli.commands import COMMANDS
from curate.options import Parameter, describe_values, read_parameters
from curate.package_data import SQL_DIR, list_names, read_sql

DOCS = Path(__file__).resolve().parent
_NOTE = "<!-- Written by docs/generate_reference.py: change the code, then run it again. -->"


def commands_page() -> str:
    """Every command with its options, from the signatures of the verbs."""
    lines = [
        _NOTE,
        "# Commands",
        "",
        "Every command is a function of the same name in Python, and a table of a recipe; options "
        "are keyword arguments and keys, with `_` for `-`. "
        "`-c DIR` or `CURATE_CATALOG` names the catalog (default `./curated`); "
        "`--quiet` and `--debug` can stand anywhere. A command prints the name or path that it "
        "made to stdout, and everything else to stderr.",
        "",
        "Exit status: 0 done; 1 failed, with one line that names the cause and the remedy; "
        "2 wrong usage; 3 done, but some samples or shards failed; 130 interrupted.",
        "",
    ]
    for name, command in COMMANDS.items():
        function = command.verb.load()
        lines += [f"## curate {name}", "", command.verb.summary, ""]
        explanation = _explanation(function)
        if explanation:
            lines += [explanation, ""]
        parameters = {**read_parameters(function), **read_parameters(command.handler)}
        lines += ["| option | values | default | |", "|---|---|---|---|"]
        lines += [_option_row(parameter) for parameter in parameters.values()]
        if command.uses_engine:
            lines.append("| `--engine`, `--ray-address` | local, ray | `local` | See scaling.md. |")
        lines += ["", "```console", *(f"$ {example}" for example in command.examples), "```", ""]
    return "\n".join(lines)


def _explanation(function: object) -> str:
    """The docstring after its first line, one line a paragraph."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")[1:]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _option_row(parameter: Parameter) -> str:
    name = parameter.display_name if parameter.is_positional else parameter.flag
    if parameter.option.short:
        name += f", {parameter.option.short}"
    values = "" if parameter.is_flag else describe_values(parameter)
    values = re.sub(r"^an? (text|number|whole number)", r"\1", values.removeprefix("one of "))
    cells = [f"`{name}`", values, _default_cell(parameter), parameter.option.help]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default_cell(parameter: Parameter) -> str:
    if parameter.is_required:
        return "required"
    if parameter.is_flag:
        return "off"
    if parameter.option.default:
        return parameter.option.default
    return "" if parameter.default is None else f"`{parameter.default}`"


def tables_page() -> str:
    """Every table, view, macro and saved query, from the SQL that makes them."""
    lines = [_NOTE, "# Tables, views and saved queries", ""]
    for comment, name, columns in _read_tables(read_sql("schema")):
        lines += [f"## {name}", ""]
        if comment:
            lines += [comment, ""]
        lines += ["| column | type | |", "|---|---|---|"]
        lines += [f"| `{column}` | {kind} | {note} |" for column, kind, note in columns]
        lines.append("")
    lines += ["## Views and macros", ""]
    pattern = r"((?:^--.*\n)+)create or replace (view|macro) (\w+(?:\([^)]*\))?)"
    for match in re.finditer(pattern, read_sql("views"), re.MULTILINE):
        comment = _join_comment(match[1])
        lines.append(f"- `{match[3]}` ({match[2]}): {comment}")
    lines += [
        "- `sample_scores` (view): one row per sample; the columns of `samples` and "
        "`sample_columns`, and one for each clustering and scoring.",
        "",
        "## Saved queries",
        "",
        "`curate query NAME --param KEY=VALUE`",
        "",
    ]
    for name in list_names(SQL_DIR / "queries", ".sql"):
        first_line = (SQL_DIR / "queries" / f"{name}.sql").read_text().split("\n", 1)[0]
        text, *parameters = first_line.removeprefix("--").strip().split("--param ")
        usage = "".join(f" `--param {parameter.split()[0]}`" for parameter in parameters)
        lines.append(f"- `{name}`: {text.strip()}{usage}")
    return "\n".join([*lines, ""])


def _read_tables(schema: str) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
    """(comment, name, columns) of each table; columns are (name, type, comment)."""
    tables = []
    pattern = r"((?:^--[^\n]*\n)*)create table if not exists (\w+) \(\n(.*?)\n\);"
    for match in re.finditer(pattern, schema, re.MULTILINE | re.DOTALL):
        columns = []
        for line in match[3].splitlines():
            definition, _, note = line.strip().partition(" -- ")
            name, kind = definition.rstrip(",").split(" ", 1)
            columns.append((name, kind, note.strip()))
        tables.append((_join_comment(match[1]), match[2], columns))
    return tables


def _join_comment(comment: str) -> str:
    return " ".join(line.removeprefix("--").strip() for line in comment.splitlines())


PAGES = {"commands.md": commands_page, "tables.md": tables_page}

if __name__ == "__main__":
    for name, make_page in PAGES.items():
        (DOCS / name).write_text(make_page(), encoding="utf-8")
