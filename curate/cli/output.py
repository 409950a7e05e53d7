"""What commands print on stdout: answers to queries, tables, the demo's summary."""

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from curate.errors import OptionError
from curate.formatting import count_of, escape_control_characters, shorten
from curate.progress import clear_line, log
from curate.storage.atomic import atomic_write

if TYPE_CHECKING:
    import duckdb

    from curate.catalog.records import AuditGroupRecord
    from curate.stages.audit.stage import Audit
    from curate.stages.compare.stage import SelectionComparison

_FILE_FORMATS = ("csv", "json", "parquet")
_FETCH_ROWS = 1000
_MIN_COLUMN = 11  # characters that a column of a table needs to be read, with its gap
_PADDING = 3  # between two columns
_MAX_CELL = 2_000  # characters of a cell of a table; csv and json have all


def write_query(
    connection: "duckdb.DuckDBPyConnection",
    sql: str,
    format: str | None,
    out: Path | None,
    limit: int,
) -> None:
    """Write the answer to `sql`, row by row: to stdout as a table by default, or to a file.

    A file's format is that of its ending, where none is given. Only tables stop after `limit` rows.
    Raises OptionError for an ending that is not known.
    """
    if format is None:
        format = _format_of(out) if out else "table"  # noqa: A001 - the option's name
    if out is None:
        if format == "parquet":
            raise OptionError("parquet is no text: name the file with --out FILE")
        _write_text(connection.execute(sql), format, sys.stdout, limit)
        return
    path = out.expanduser().absolute()
    _check_ending(path, format)
    if format == "parquet":
        num_rows = _write_parquet(connection.sql(sql), path)
    else:
        with (
            atomic_write(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            num_rows = _write_text(connection.execute(sql), format, file, sys.maxsize)
    log.info(
        "wrote %s, %s bytes, to %s", count_of(num_rows, "row"), f"{path.stat().st_size:,}", out
    )


def _format_of(out: Path) -> str:
    """The format that a file's ending stands for. Raises OptionError for an unknown one."""
    ending = out.suffix.lower().lstrip(".")
    if ending not in _FILE_FORMATS:
        known = ", ".join(f".{name}" for name in _FILE_FORMATS)
        raise OptionError(f"--out {out.name}: give a name that ends in {known}, or add --format")
    return ending


def _check_ending(path: Path, format: str) -> None:
    """OptionError for a file of one format with the ending of another."""
    ending = path.suffix.lower().lstrip(".")
    if ending in _FILE_FORMATS and ending != format:
        raise OptionError(
            f"--out {path.name} and --format {format} contradict each other: drop one"
        )


def print_rows(rows: list[dict[str, Any]], format: str) -> None:
    """Rows with the same keys as a table, or as JSON: one object, or a list of several."""
    if format == "table":
        print_table(list(rows[0]), [tuple(map(_shorten, row.values())) for row in rows])
    else:
        print(json.dumps(rows[0] if len(rows) == 1 else rows, indent=1, allow_nan=False))


def print_table(
    columns: list[str], rows: Sequence[tuple[Any, ...]], file: TextIO | None = None
) -> None:
    """A plain table; numbers to the right, and no wrapping where the output is no terminal.

    A terminal that is too narrow for the columns gets each row as lines of name and value.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    clear_line()
    file = file or sys.stdout
    is_terminal = file.isatty()
    # What a pipe or a file gets is data: no colours, not even by FORCE_COLOR.
    console = Console(
        file=file,
        force_terminal=is_terminal,
        width=None if is_terminal else 100_000,
        highlight=False,
    )
    cells = [
        [
            Text(escape_control_characters("" if value is None else _shorten_cell(value), "\n\t"))
            for value in row
        ]
        for row in rows
    ]
    if is_terminal and rows and console.width < _MIN_COLUMN * len(columns):
        for row_cells in cells:
            for column, cell in zip(columns, row_cells, strict=True):
                console.print(Text.assemble((column, "bold"), "  ", cell))
            console.print()
        return
    widths = [
        max(len(column), *(row_cells[index].cell_len for row_cells in cells), 0)
        for index, column in enumerate(columns)
    ]
    whole = _choose_whole(widths, console.width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        is_numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        justify = "right" if is_numeric else "left"
        table.add_column(
            Text(column),
            justify=justify,  # type: ignore[arg-type]
            overflow="fold",
            no_wrap=index in whole,
        )
    for row_cells in cells:
        table.add_row(*row_cells)
    console.print(table)


def _choose_whole(widths: list[int], width: int) -> set[int]:
    """The columns whose lines are not broken: the narrowest, in up to half the width of a table."""
    whole: set[int] = set()
    for index in sorted(range(len(widths)), key=lambda index: widths[index]):
        if sum(widths[other] + _PADDING for other in (*whole, index)) > width / 2:
            break
        whole.add(index)
    return whole


def _shorten_cell(value: Any) -> str:
    return shorten(str(value), _MAX_CELL)


def _shorten(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def _fetch_rows(cursor: "duckdb.DuckDBPyConnection") -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchmany(_FETCH_ROWS):
        yield from rows


def _write_text(cursor: Any, format: str, file: TextIO, limit: int) -> int:
    """Write the answer, and return how many rows it has, of a table those that are shown."""
    num_rows = 0

    def count_rows() -> Iterator[tuple[Any, ...]]:
        nonlocal num_rows
        for row in _fetch_rows(cursor):
            num_rows += 1
            yield row

    columns = [column[0] for column in cursor.description or []]
    if format == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(count_rows())
    elif format == "json":
        file.write("[")
        for index, row in enumerate(count_rows()):
            record = dict(zip(columns, map(_to_json, row), strict=True))
            file.write(",\n " if index else "\n ")
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False))
        file.write("\n]\n")
    else:
        rows = cursor.fetchmany(min(limit, sys.maxsize - 1) + 1)
        print_table(columns, rows[:limit], file)
        if len(rows) > limit:
            print(
                f"… more than {limit} rows: --limit N shows more, --format csv gives all",
                file=sys.stderr,
            )
        num_rows = len(rows[:limit])
    return num_rows


def _to_json(value: Any) -> Any:
    """A value as JSON has it: numbers that it lacks become null, dates and the like become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list | tuple):
        return [_to_json(element) for element in value]
    if isinstance(value, dict):
        return {str(key): _to_json(element) for key, element in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _write_parquet(relation: Any, path: Path) -> int:
    """Write the answer, and return how many rows it has."""
    import pyarrow.parquet as pq

    reader = relation.to_arrow_reader(100_000)
    num_rows = 0
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, reader.schema) as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


_MAX_GROUPS = 20  # in the table of an audit or a comparison; JSON and the catalog have all


def print_audit(audit: "Audit", format: str) -> None:
    """An audit as two tables, the whole beside random and the groups; or as one JSON object."""
    record = audit.record
    if format == "json":
        content = record.to_dict() | {
            "pictures": [str(picture) for picture in audit.pictures],
            "groups": [group._asdict() for group in audit.groups],
            "contributions": [row._asdict() for row in audit.contributions],
        }
        print_rows([content], format)
        return
    rows = [
        ("samples", record.num_samples, record.num_samples, record.num_candidates),
        ("groups that vanish", record.num_vanished, record.random_num_vanished, None),
        (
            f"groups below {record.floor:g} of random",
            record.num_below_floor,
            record.random_num_below_floor,
            None,
        ),
        ("KL divergence from all, nats", record.kl, record.random_kl, 0.0),
        (
            "effective number of groups",
            record.effective_groups,
            record.random_effective_groups,
            record.all_effective_groups,
        ),
        (
            "distance from dropped to kept, mean",
            record.distance_mean,
            record.random_distance_mean,
            None,
        ),
        ("the same, 99th percentile", record.distance_99, record.random_distance_99, None),
        (
            "share with a near duplicate kept",
            record.near_duplicate_share,
            record.random_near_duplicate_share,
            None,
        ),
    ]
    columns = [f"by {record.grouped_by}", record.selection, "random", "all"]
    print_table(columns, [(row[0], *map(_shorten_number, row[1:])) for row in rows])
    print()
    groups_shown = [
        (
            group.group_name,
            group.num_candidates,
            group.num_kept,
            _shorten_number(group.num_kept / group.num_candidates),
            _shorten_number(group.random_num_kept / group.num_candidates),
            ", ".join(_describe_group(group)),
        )
        for group in audit.groups[:_MAX_GROUPS]
    ]
    columns = [record.grouped_by, "samples", "kept", "share", "random", ""]
    print_table(columns, groups_shown)
    _print_rest(len(audit.groups))
    if audit.contributions:
        print()
        contributions = [
            (row.population, *map(_shorten_number, row[3:])) for row in audit.contributions
        ]
        columns = ["contributions", "samples", "mean", "mean / sd", "effective share", "negative"]
        print_table(columns, contributions)
    print()
    for picture in audit.pictures:
        print(f"picture: {os.path.relpath(picture)}")


def _describe_group(group: "AuditGroupRecord") -> list[str]:
    vanished = [] if group.num_kept else ["vanished"]
    return [*vanished, "below the floor"] if group.is_below_floor else vanished


def print_comparison(comparison: "SelectionComparison", format: str) -> None:
    """Selections in pairs, as a table each of overlaps and of groups; or as one JSON object."""
    if format == "json":
        content = {
            "grouped_by": comparison.grouped_by,
            "picture": str(comparison.picture),
            "pairs": [pair._asdict() for pair in comparison.pairs],
            "groups": [group._asdict() for group in comparison.groups],
        }
        print_rows([content], format)
        return
    columns = ["a", "b", "kept by a", "by b", "by both", "Jaccard", "at random", "Spearman"]
    rows = [
        (
            pair.a,
            pair.b,
            pair.num_a,
            pair.num_b,
            pair.num_shared,
            _shorten_number(pair.jaccard),
            _shorten_number(pair.random_jaccard),
            _shorten_number(pair.spearman),
        )
        for pair in comparison.pairs
    ]
    print_table(columns, rows)
    for pair in comparison.pairs:
        groups = [
            group[2:] for group in comparison.groups if (group.a, group.b) == (pair.a, pair.b)
        ]
        print(f"\na = {pair.a}, b = {pair.b}")
        print_table(
            [comparison.grouped_by, "both", "only a", "only b", "neither"], groups[:_MAX_GROUPS]
        )
        _print_rest(len(groups))
    print(f"\npicture: {os.path.relpath(comparison.picture)}")


def _print_rest(num_groups: int) -> None:
    if num_groups > _MAX_GROUPS:
        print(f"… and {num_groups - _MAX_GROUPS:,} groups more (--format json has all)")


def _shorten_number(value: float | int | None) -> float | int | None:
    return float(f"{value:.4g}") if isinstance(value, float) else value


_DEMO_SQL = """
with seconds as (
    select arm, selection, avg(seconds) as seconds from training_runs group by all
)
select
    (select sum(num_samples) from shards) as samples,
    (select sum(num_bytes) from shards) as shard_bytes,
    (select sum(num_embedded) from embedded_shards) as embedded,
    (select sum(num_failed) from embedded_shards) as failed,
    (select k from clusterings) as k,
    (select string_agg(scoring, ', ' order by run_id) from scorings) as scorings,
    (select count(*) from pruned_vs_random) as compared,
    (select seconds from seconds where arm = 'full') as seconds_full,
    (select seconds from seconds where arm = 'pruned' and selection = exports.selection)
        as seconds_pruned,
    (select any_value(validation) from training_runs where selection = exports.selection)
        as validation,
    exports.*
from exports
"""


def print_demo(catalog: Path, report: str) -> None:
    """What the demo did, what was gained by it, and what to try next."""
    from curate.stages.evidence.verdicts import read_verdicts
    from curate.stages.query import query

    result = query(catalog, _DEMO_SQL).to_pylist()[0]
    selection = result["selection"]
    embedded = (
        f"{result['samples']:,} digits: {result['embedded']:,} embedded, "
        f"{result['failed']:,} failed"
    )
    exported = (
        f"{result['num_shards']} shards, {result['num_bytes']:,} bytes, "
        f"in {os.path.relpath(result['path'])}"
    )
    picture = catalog / "figures" / "el2n.png"
    rows = [
        ("embed", embedded),
        ("cluster", f"{result['k']} clusters"),
        ("score", result["scorings"]),
        ("validate", f"{result['compared']} selections against random ones and against all"),
        ("select", f"{selection}: {result['num_samples']:,} digits"),
        ("export", exported),
        ("picture", os.path.relpath(picture)),
        ("report", os.path.relpath(report)),
    ]
    print_table(["stage", "result"], rows)
    share = result["num_samples"] / result["samples"]
    seconds = result["seconds_pruned"] / result["seconds_full"]
    print(
        f"\n{result['num_samples']:,} of {result['samples']:,} digits are enough, {share:.0%}, "
        f"in {result['num_bytes'] / result['shard_bytes']:.0%} of the bytes."
        f"\nA model trains on them in {result['seconds_pruned']:.2f} s instead of "
        f"{result['seconds_full']:.2f} s, {seconds:.0%}."
    )
    against = {
        verdict.comparison.baseline: verdict
        for verdict in read_verdicts(catalog, result["validation"])
        if verdict.comparison.selection == selection
    }
    print(
        f"Against all digits: {against['full'].summary}; "
        f"against as many at random: {against['random'].summary}."
    )
    curate = _command_name()
    print(
        f"\nTry next:\n  {curate} query verdicts -c {catalog}\n"
        f"  {curate} query hardest --param scoring=el2n -c {catalog}\n"
        f"  {curate} select --keep 0.5 --strategy easiest -c {catalog}"
    )


def _command_name() -> str:
    """What people can type for this command: its name where their shell finds it, else its path."""
    if shutil.which("curate"):
        return "curate"
    return (
        "python -m curate" if sys.argv[0].endswith("__main__.py") else os.path.relpath(sys.argv[0])
    )
