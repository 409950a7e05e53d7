"""Which sets are out of date: made by other code, or from sets that are gone or out of date."""

import json
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    DeduplicationRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.encoders import encoder_module
from curate.errors import CurateError
from curate.models import model_module
from curate.progress import log
from curate.stages.score.metric_lookup import find_metric, split_spec
from curate.strategies import strategies


def encoder_checksum(encoder: str) -> str:
    """The checksum of the code that defines an encoder. Raises CurateError."""
    return provenance.module_checksum(encoder_module(encoder))


def models_checksum(models: list[str]) -> str:
    """The checksum of the code that defines models. Raises CurateError."""
    modules = sorted({model_module(model) for model in models})
    return " ".join(provenance.module_checksum(module) for module in modules)


def validation_checksum(task: str, model: str) -> str:
    """The checksum of the code that trains, or measures, for a task. Raises CurateError."""
    modules = {"captions": ["contrastive"], "coverage": ["nearest"]}.get(task)
    if modules is None:
        checksum = models_checksum([model])
        modules = ["self_supervised"] if task == "self-supervised" else []
    else:
        checksum = ""
    names = [f"curate.training.{module}" for module in modules]
    return " ".join([checksum, *map(provenance.module_checksum, names)]).strip()


def metric_checksum(metric: str) -> str:
    """The checksum of the code that defines a metric. Raises CurateError."""
    path, _ = split_spec(metric)
    if path is None:
        return provenance.module_checksum(find_metric(metric).__module__)
    try:
        return provenance.file_checksum(path)
    except OSError as error:
        raise CurateError(f"cannot read '{path}': {error.strerror}; write FILE.py:NAME") from error


def strategy_checksum(strategy: str) -> str:
    """The checksum of the code that defines a strategy. Raises CurateError."""
    return provenance.module_checksum(strategies[strategy].__module__)


def dedup_checksum() -> str:
    """The checksum of the code that says which samples are duplicates, and which stay."""
    modules = [f"curate.stages.dedup.{name}" for name in ("cosines", "groups", "methods")]
    return " ".join(map(provenance.module_checksum, modules))


def audit_checksum() -> str:
    """The checksum of the code that says what a selection leaves of groups and covers."""
    modules = ("audit.measures", "sample_groups", "select.random_draws")
    return " ".join(provenance.module_checksum(f"curate.stages.{name}") for name in modules)


# From a run's stage and arguments to the checksum that its code has now.
_CURRENT_CHECKSUMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "embed": lambda arguments: encoder_checksum(arguments["encoder"]),
    "remove": lambda arguments: encoder_checksum(arguments["encoder"]),  # of shards
    "probe": lambda arguments: models_checksum(arguments["models"]),
    "score": lambda arguments: metric_checksum(arguments["metric"]),
    "dedup": lambda arguments: dedup_checksum(),
    "select": lambda arguments: strategy_checksum(arguments["strategy"]),
    "audit": lambda arguments: audit_checksum(),
    "validate": lambda arguments: validation_checksum(
        arguments.get("task", "labels"), arguments["model"]
    ),
}


class _SetRun(NamedTuple):
    """A set with the run that made it."""

    kind: str
    name: str
    run_id: int
    stage: str
    arguments: dict[str, Any]
    parent_run_ids: list[int]
    code_checksum: str | None


def find_stale(
    catalog: Catalog, *, by_selections: bool = True, record: SetRecord | None = None
) -> dict[tuple[str, str], str]:
    """The sets that are out of date, by kind and name, each with the reason.

    Without `by_selections`, a validation is not out of date because one of its selections is: each
    of its arms knows the members that it trained on, and the others still count. With `record`,
    only that set and those that it was made from are looked at.
    """
    with catalog.reading() as connection:
        rows = connection.execute(
            "select kind, named_sets.name, run_id, stage, arguments, parent_run_ids, code_checksum "
            "from named_sets join runs using (run_id) order by run_id"
        ).fetchall()
        runs = connection.execute("select run_id, name, stage from runs").fetchall()
    run_names = {run_id: name for run_id, name, _ in runs}
    select_run_ids = {run_id for run_id, _, stage in runs if stage == "select"}
    set_runs = [_SetRun(*row)._replace(arguments=json.loads(row[4])) for row in rows]
    all_names = {set_run.name for set_run in set_runs}
    by_run_id = {set_run.run_id: set_run for set_run in set_runs}
    if record is not None:
        ancestor_ids = _find_ancestors(set_runs, record)
        set_runs = [set_run for set_run in set_runs if set_run.run_id in ancestor_ids]
    reasons: dict[int, str] = {}
    for set_run in set_runs:  # a set comes after the sets that it was made from
        reason = None
        if _has_changed_code(set_run):
            reason = "by other code than there is now"
        # What embed makes grows, so its parent is an earlier state of itself.
        grows = set_run.kind in ("embedding", "columns")
        parent_ids = [] if grows else set_run.parent_run_ids
        for parent_id in parent_ids:
            if set_run.kind == "validation" and not by_selections and parent_id in select_run_ids:
                continue
            if parent_id not in by_run_id:
                reason = _changed_parent(run_names.get(parent_id), all_names)
            elif parent_id in reasons:
                parent = by_run_id[parent_id]
                reason = f"from the {parent.kind} '{parent.name}', which is out of date"
        if reason:
            reasons[set_run.run_id] = reason
    return {
        (set_run.kind, set_run.name): reasons[set_run.run_id]
        for set_run in set_runs
        if set_run.run_id in reasons
    }


def _changed_parent(name: str | None, existing: set[str]) -> str:
    """The reason where a set was made from one that has changed, or was removed."""
    if name is None:
        return "from a removed set"
    if name not in existing:
        return f"from '{name}', which was removed"
    return f"before the last change of '{name}'"


def warn_if_stale(catalog: Catalog, record: SetRecord) -> None:
    """Log a warning with the reason and the remedy if a set is out of date."""
    reason = find_stale(catalog, record=record).get((record.kind, record.name))
    if reason:
        log.warning(
            "the %s '%s' was made %s: `%s` makes it again",
            record.kind,
            record.name,
            reason,
            remake_command(catalog, record),
        )


def remake_command(catalog: Catalog, record: SetRecord) -> str:
    """The command that makes a set again; for a scoring, with the options that it was made with."""
    if isinstance(record, SelectionRecord) and record.strategy == "dedup":
        return f"{DeduplicationRecord.command} --name {record.selection}"
    if not isinstance(record, ScoringRecord):
        return record.command
    arguments = catalog.run_arguments(record.run_id)
    spec = arguments.get("metric", record.metric)
    words = ["--metric-file", spec] if ":" in spec else [spec]
    return shlex.join(["curate", "score", *words, *arguments.get("given", [])])


def _find_ancestors(set_runs: list[_SetRun], record: SetRecord) -> set[int]:
    """The run that made the set, and those that made what it was made from, transitively."""
    by_run_id = {set_run.run_id: set_run for set_run in set_runs}
    pending = [
        set_run.run_id
        for set_run in set_runs
        if (set_run.kind, set_run.name) == (record.kind, record.name)
    ]
    ancestor_ids: set[int] = set()
    while pending:
        current = pending.pop()
        if current not in ancestor_ids:
            ancestor_ids.add(current)
            set_run = by_run_id.get(current)
            pending += set_run.parent_run_ids if set_run else []
    return ancestor_ids


def _has_changed_code(set_run: _SetRun) -> bool:
    """Whether the code that made a set has another checksum now; unknown code has not changed."""
    current_checksum = _CURRENT_CHECKSUMS.get(set_run.stage)
    if set_run.code_checksum is None or current_checksum is None:
        return False
    try:
        return current_checksum(set_run.arguments) != set_run.code_checksum
    except (CurateError, KeyError):  # a metric's file, or an extension, that is no longer there
        return False
