"""`curate list`: the names that options take, and the sets of a catalog."""

import contextlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from curate.catalog.records import SET_TYPES
from curate.cli.output import print_table
from curate.errors import CurateError
from curate.options import Option, verb
from curate.package_data import RECIPES_DIR, SQL_DIR, first_comment, list_names

_REGISTRIES = ("encoders", "metrics", "models", "strategies")
_SHIPPED = {"recipes": (RECIPES_DIR, ".toml", "#"), "queries": (SQL_DIR / "queries", ".sql", "--")}
# Shapes in a docstring's first line, such as `: [n, m], [n] -> [n]`.
_SHAPES = re.compile(
    r":? (?:\w+ )?(?:\[[a-z, ]+\],? ?)+-> (?:\[[a-z]+\](?: in \[[^\]]*\])?|[A-Z]\w+)"
)
_HIDDEN_COLUMNS = {  # long ones
    "embedding": ("preprocessing",),
    "probe": ("test", "folder", "fingerprint"),
    "validation": ("test", "fingerprint"),
}
_SETS_SQL = (
    "select kind, name, made_from, strftime(started_at, '%Y-%m-%d %H:%M') as made_at, status "
    "from lineage order by run_id"
)
_RUNS_SQL = (
    "select * exclude (arguments, fingerprint, code_checksum, timing, process_start) "
    "from runs order by run_id"
)
_SET_TABLES = {record_type.table: record_type for record_type in SET_TYPES}
SUBJECTS = (*_REGISTRIES, *_SHIPPED, "sets", "runs", *_SET_TABLES)


@verb()
def print_list(
    catalog: str | Path,
    subject: Annotated[
        str,
        Option(
            "encoders, metrics, models, strategies, recipes, queries; sets, runs, selections …",
            choices=SUBJECTS,
            metavar="WHAT",
        ),
    ] = "sets",
) -> None:
    """Print the names of a kind, each with its first line of description; or the sets of a catalog.

    Sets of a catalog have a column that says why they are out of date, if they are; after a
    `curate update`, one more that says how many samples their centroids were fitted on.
    """
    if subject in _REGISTRIES:
        registry = getattr(importlib.import_module(f"curate.{subject}"), subject).load()
        functions = sorted(registry.items())
        rows: list[tuple[str, ...]] = [
            (name, _SHAPES.sub("", (function.__doc__ or "").strip().split("\n", 1)[0]))
            for name, function in functions
        ]
        if subject == "metrics":
            with _hold_open(catalog):
                rows = [
                    _describe_metric(catalog, name, text, function)
                    for (name, text), (_, function) in zip(rows, functions, strict=True)
                ]
        columns = ["name", "what it is", "needs", "now"][: len(rows[0])]
        print_table(columns, rows)
    elif subject in _SHIPPED:
        folder, suffix, prefix = _SHIPPED[subject]
        names = list_names(folder, suffix)
        descriptions = [first_comment(folder / f"{name}{suffix}", prefix) for name in names]
        print_table(["name", "what it is"], list(zip(names, descriptions, strict=True)))
    else:
        _print_catalog_rows(catalog, subject)


@contextlib.contextmanager
def _hold_open(path: str | Path) -> Iterator[None]:
    """Open a catalog, if there is one, once for all that is read of it in the block."""
    from curate.catalog.catalog import Catalog

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(CurateError):
            stack.enter_context(Catalog(path).reading())
        yield


def _describe_metric(
    catalog: str | Path, name: str, text: str, function: Callable[..., Any]
) -> tuple[str, str, str, str]:
    """A metric's row: what it is, with its options, what it needs, and whether it can run now."""
    from curate.stages.inputs.corpus import describe_needs, list_options

    parameters = inspect.signature(function).parameters
    options = [f"{option}={value}" for option, value in list_options(parameters).items()]
    if options:
        text += f" Options: {', '.join(options)}."
    return name, text, describe_needs(parameters), _find_obstacle(catalog, name, parameters)


def _find_obstacle(path: str | Path, name: str, parameters: Mapping[str, Any]) -> str:
    """`yes` where a metric can run on the catalog, else `no`, or which option decides."""
    from curate.catalog.catalog import Catalog
    from curate.stages.inputs.corpus import CorpusInputs

    try:
        catalog = Catalog(path)
        with catalog.reading() as connection:
            ((num_samples, num_labels),) = connection.execute(
                "select count(*), count(label) from samples"
            ).fetchall()
        inputs = CorpusInputs(
            catalog, f"the metric '{name}'", parameters, None, None, None, None, 0, None
        )
        if inputs.uses_target:
            return "with --target"
        if inputs.uses_clustering:
            _ = inputs.clustering
        if inputs.uses_probe:
            _ = inputs.probe
        if inputs.uses_vectors:
            _ = inputs.embedding
    except CurateError as error:
        return "no: choose one of several" if "several" in str(error) else "no"
    needs_labels = {"labels", "class_means"} & set(parameters)
    return "yes" if num_samples and (num_labels or not needs_labels) else "no"


def _print_catalog_rows(path: str | Path, subject: str) -> None:
    from curate.catalog.catalog import Catalog
    from curate.stages.older_centroids import find_older_centroids
    from curate.stages.staleness import find_stale

    catalog = Catalog(path)
    record_type = _SET_TABLES.get(subject)
    sql = {"sets": _SETS_SQL, "runs": _RUNS_SQL}.get(subject)
    if record_type:
        hidden = _HIDDEN_COLUMNS.get(record_type.kind, ("fingerprint",))
        sql = f"select * exclude ({', '.join(hidden)}) from {subject} order by run_id"
    with catalog.reading() as connection:
        cursor = connection.execute(sql or "")
        columns = [column[0] for column in cursor.description or []]
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    if subject != "runs":
        stale = find_stale(catalog)
        kind_and_name = (
            (lambda row: (record_type.kind, row[0])) if record_type else (lambda row: row[:2])
        )
        older = find_older_centroids(catalog)
        marks = [older.get(tuple(kind_and_name(row)), "") for row in rows]
        rows = [(*row, stale.get(tuple(kind_and_name(row)), "")) for row in rows]
        columns.append("out_of_date")
        if any(marks):
            rows = [(*row, mark) for row, mark in zip(rows, marks, strict=True)]
            columns.append("centroids")
    print_table(columns, rows)
