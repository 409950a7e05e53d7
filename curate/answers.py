"""What commands print on stdout: answers to queries, lists, the demo's summary."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from curate import resources
from curate.errors import CurateError

if TYPE_CHECKING:
    import duckdb

FORMATS = ("table", "csv", "json", "parquet")


def write(answer: "duckdb.DuckDBPyConnection", format: str, out: Path | None, limit: int) -> None:
    """Write a query's answer in one of FORMATS, to a file or to stdout, row by row."""
    if format not in FORMATS:
        raise CurateError(f"no format called '{format}'; there are: {', '.join(FORMATS)}")
    if format == "parquet":
        if out is None:
            raise CurateError("parquet is no text: name the file with --out FILE")
        _write_parquet(answer, out)
        return
    columns = [column[0] for column in answer.description or []]
    if out is None:
        _write_text(answer, columns, format, sys.stdout, limit)
    else:
        with out.open("w", encoding="utf-8", newline="") as file:
            _write_text(answer, columns, format, file, limit)


def _rows(answer: "duckdb.DuckDBPyConnection") -> Iterator[tuple[Any, ...]]:
    while rows := answer.fetchmany(1000):
        yield from rows


def _write_text(answer: Any, columns: list[str], format: str, file: TextIO, limit: int) -> None:
    if format == "csv":
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(_rows(answer))
    elif format == "json":
        file.write("[")
        for place, row in enumerate(_rows(answer)):
            file.write(",\n " if place else "\n ")
            file.write(json.dumps(dict(zip(columns, row, strict=True)), default=str, ensure_ascii=False))
        file.write("\n]\n")
    else:
        rows = answer.fetchmany(limit + 1)
        print_table(columns, rows[:limit], file)
        if len(rows) > limit:
            print(f"… more than {limit} rows: --limit N shows more, --format csv gives all", file=sys.stderr)


def _write_parquet(answer: Any, out: Path) -> None:
    import pyarrow.parquet as pq

    reader = answer.to_arrow_reader(100_000)
    with pq.ParquetWriter(out, reader.schema) as writer:
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
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    console.print(table)


def print_list(what: str, catalog: Path) -> None:
    """The known names of a kind, each with its first line of description."""
    if what in ("encoders", "metrics", "strategies"):
        import importlib

        registry = getattr(importlib.import_module(f"curate.{what}"), what).load()
        rows = [(name, (function.__doc__ or "").strip().split("\n", 1)[0]) for name, function in sorted(registry.items())]
    elif what in ("queries", "recipes"):
        folder, suffix, comment = {
            "queries": (resources.CATALOG / "queries", ".sql", "--"),
            "recipes": (resources.RECIPES, ".toml", "#"),
        }[what]
        names = resources.names(folder, suffix)
        rows = [(name, resources.describe(folder / f"{name}{suffix}", comment)) for name in names]
    elif what == "sets":
        from curate.stages.query import answering

        with answering(catalog, "sets") as answer:
            write(answer, "table", None, 1000)
        return
    else:
        raise CurateError(f"no list of '{what}'; there are: encoders, metrics, strategies, recipes, queries, sets")
    print_table(["name", "what it is"], rows)


def print_demo(made: dict[str, Path]) -> None:
    """What the demo did, and what to try next."""
    from curate.stages.query import answering

    with answering(
        made["catalog"],
        "select sum(num_samples), sum(num_embedded), sum(num_failed) from shards join embedded_shards using (shard_id)",
    ) as answer:
        found, embedded, failed = answer.fetchone() or (0, 0, 0)
    with answering(made["catalog"], "select k, objective from clusterings") as answer:
        k, objective = answer.fetchone() or (0, 0.0)
    with answering(made["catalog"], "select num_samples, num_shards, num_bytes from exports") as answer:
        kept, shards, num_bytes = answer.fetchone() or (0, 0, 0)
    rows = [
        ("embed", f"{found:,} digits: {embedded:,} embedded, {failed:,} failed"),
        ("cluster", f"{k} clusters, objective {objective:,.1f}"),
        ("score", "ssl_prototypes, supervised_prototypes"),
        ("select", f"{kept:,} kept, the hardest 80% with every class sure of its floor"),
        ("export", f"{shards} shards, {num_bytes:,} bytes, in {made['pruned']}"),
        ("picture", str(made["picture"])),
    ]
    print_table(["stage", "result"], rows)
    catalog = made["catalog"]
    print(f"\nTry next:\n  curate query class_balance -c {catalog}\n  curate query hardest -c {catalog}"
          f"\n  curate select --keep 0.5 --strategy easiest -c {catalog}")  # fmt: skip
