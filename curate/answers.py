"""What commands print on stdout: answers to queries, lists, the demo's summary."""

import csv
import importlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from curate import resources, sets
from curate.atomic import replacing
from curate.errors import CurateError
from curate.units import printable

if TYPE_CHECKING:
    import duckdb

FORMATS = ("table", "csv", "json", "parquet")


def write(connection: "duckdb.DuckDBPyConnection", sql: str, format: str | None, out: Path | None, limit: int) -> None:
    """Write the answer to `sql`, row by row: to stdout as a table unless `format` says otherwise, or to a file.

    A file's format is that of its ending, csv where that says nothing. Only tables stop after `limit` rows.
    """
    if format is None:
        ending = out.suffix.lstrip(".") if out else "table"
        format = ending if ending in FORMATS else "csv"  # noqa: A001 - the option's name
    if format not in FORMATS:
        raise CurateError(f"no format called '{format}'; there are: {', '.join(FORMATS)}")
    if format == "parquet":
        if out is None:
            raise CurateError("parquet is no text: name the file with --out FILE")
        _write_parquet(connection.sql(sql), out)
    elif out is None:
        _write_text(connection.execute(sql), format, sys.stdout, limit)
    else:
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            _write_text(connection.execute(sql), format, file, sys.maxsize)


def write_rows(rows: list[dict[str, Any]], format: str) -> None:
    """Rows that are in memory, as a table, or as JSON: one object, or a list where there are several."""
    if format not in ("table", "json"):
        raise CurateError(f"no format called '{format}'; there are: table, json")
    if format == "table":
        print_table(list(rows[0]), [tuple(f"{value:.5g}" if isinstance(value, float) else value for value in row.values())
                                    for row in rows])  # fmt: skip
    else:
        print(json.dumps(rows[0] if len(rows) == 1 else rows, indent=1, allow_nan=False))


def _rows(answer: "duckdb.DuckDBPyConnection") -> Iterator[tuple[Any, ...]]:
    while rows := answer.fetchmany(1000):
        yield from rows


def _write_text(answer: Any, format: str, file: TextIO, limit: int) -> None:
    columns = [column[0] for column in answer.description or []]
    if format == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(_rows(answer))
    elif format == "json":
        file.write("[")
        for place, row in enumerate(_rows(answer)):
            file.write(",\n " if place else "\n ")
            file.write(json.dumps(dict(zip(columns, map(_plain, row), strict=True)), ensure_ascii=False, allow_nan=False))
        file.write("\n]\n")
    else:
        rows = answer.fetchmany(min(limit, sys.maxsize - 1) + 1)
        print_table(columns, rows[:limit], file)
        if len(rows) > limit:
            print(f"… more than {limit} rows: --limit N shows more, --format csv gives all", file=sys.stderr)


def _plain(value: Any) -> Any:
    """A value as JSON knows it: numbers that JSON has none for become null, dates and the like become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _write_parquet(answer: Any, out: Path) -> None:
    import pyarrow.parquet as pq

    reader = answer.to_arrow_reader(100_000)
    with replacing(out) as temporary, pq.ParquetWriter(temporary, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def print_table(columns: list[str], rows: list[tuple[Any, ...]], file: TextIO | None = None) -> None:
    """A plain table; numbers to the right, and no wrapping where the output is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else 100_000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[place], int | float | None) for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if value is None else printable(str(value), "\n\t")) for value in row))
    console.print(table)


_OF_PACKAGE = ("encoders", "metrics", "models", "strategies", "recipes", "queries")
_LONG = {"embedding": "preprocessing", "probe": "test, folder, fingerprint", "validation": "test, fingerprint"}
_OF_CATALOG = {"sets": "sets", "runs": "select * exclude (arguments, fingerprint) from runs order by run_id"} | {
    table: f"select * exclude ({_LONG.get(kind, 'fingerprint')}) from {table} order by run_id"
    for kind, (table, _) in sets.HEADS.items()
}


def print_list(what: str, catalog: Path) -> None:
    """The known names of a kind, each with its first line of description; or the sets of a catalog."""
    if what in _OF_CATALOG:
        from curate.stages.query import asking

        with asking(catalog, _OF_CATALOG[what]) as (connection, sql):
            write(connection, sql, "table", None, 1000)
    elif what in _OF_PACKAGE:
        print_table(["name", "what it is"], _described(what))
    else:
        raise CurateError(f"no list of '{what}'; there are: {', '.join([*_OF_PACKAGE, *_OF_CATALOG])}")


def _described(what: str) -> list[tuple[str, str]]:
    if what == "queries":
        folder, suffix, comment = resources.CATALOG / "queries", ".sql", "--"
    elif what == "recipes":
        folder, suffix, comment = resources.RECIPES, ".toml", "#"
    else:
        registry = getattr(importlib.import_module(f"curate.{what}"), what).load()
        return [(name, (function.__doc__ or "").strip().split("\n", 1)[0]) for name, function in sorted(registry.items())]
    names = resources.names(folder, suffix)
    return [(name, resources.describe(folder / f"{name}{suffix}", comment)) for name in names]


_MADE = """
select (select sum(num_samples) from shards) as samples, (select sum(num_embedded) from embedded_shards) as embedded,
       (select sum(num_failed) from embedded_shards) as failed, k, objective,
       over_full, over_full_interval, over_random, over_random_interval, exports.*
from clusterings cross join exports join pruned_vs_random using (selection)
"""


def print_demo(catalog: Path, report: str) -> None:
    """What the demo did, and what to try next."""
    from curate.stages.query import query

    made = query(catalog, _MADE).to_pylist()[0]
    print_table(["stage", "result"], [
        ("embed", f"{made['samples']:,} digits: {made['embedded']:,} embedded, {made['failed']:,} failed"),
        ("cluster", f"{made['k']} clusters, objective {made['objective']:,.1f}"),
        ("score", "ssl_prototypes, supervised_prototypes"),
        ("select", f"{made['num_samples']:,} kept, the hardest 80% with every class sure of its floor"),
        ("export", f"{made['num_shards']} shards, {made['num_bytes']:,} bytes, in {os.path.relpath(made['path'])}"),
        ("validate", f"{made['over_full']:+.2f} ± {made['over_full_interval']:.2f} points against all digits, "
                     f"{made['over_random']:+.2f} ± {made['over_random_interval']:.2f} against as many at random"),
        ("picture", os.path.relpath(catalog / "figures" / "supervised_prototypes.png")),
        ("report", os.path.relpath(report)),
    ])  # fmt: skip
    curate = _typed()
    print(f"\nTry next:\n  {curate} query class_balance -c {catalog}\n  {curate} query hardest -c {catalog}"
          f"\n  {curate} select --keep 0.5 --strategy easiest -c {catalog}")  # fmt: skip


def _typed() -> str:
    """What people can type for this command: its name where their shell finds it, else its path."""
    if shutil.which("curate"):
        return "curate"
    return "python -m curate" if sys.argv[0].endswith("__main__.py") else os.path.relpath(sys.argv[0])
