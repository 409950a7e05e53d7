"""`curate update`: bring what was made from the corpus up to date, at the cost of what changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    SET_TYPES_BY_KIND,
    ClusteringRecord,
    EmbeddingRecord,
    ExportRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.catalog.samples import are_in_runs
from curate.errors import CurateError
from curate.execution.types import Resources
from curate.formatting import count_of
from curate.options import Option, Workers, verb
from curate.progress import log
from curate.stages.staleness import find_stale, remake_command
from curate.stages.update.clusterings import extend_clustering, has_drifted
from curate.stages.update.exports import find_export_obstacle, is_unfinished, update_export
from curate.stages.update.lists import update_lists
from curate.stages.update.scorings import extend_scoring, find_obstacle, has_other_samples
from curate.stages.update.scratch import compare_with_scratch, fit_again
from curate.stages.update.selections import draw_again, has_other_shards, load_source


@verb()
def update(
    catalog: Catalog | str | Path,
    *,
    refit: Annotated[
        bool, Option("Fit new centroids where the drift says so, and score all samples by them.")
    ] = False,
    compare: Annotated[
        bool,
        Option(
            "Also make selections under older centroids from scratch, to say how far they are from "
            "that. It costs as much as the whole chain."
        ),
    ] = False,
    workers: Workers = 1,
) -> list[str]:
    """Bring every set up to date after shards came or left; returns what has changed.

    Call it after `curate embed` has taken in new shards, or `curate remove shards` old ones. New
    samples are assigned to the centroids that there are, and scored by these and by the class means
    that there were; those of before keep their scores. Selections are drawn again as they were
    drawn, so a selection has just the members that one from scratch under the same centroids would
    have; those that came and left are in `curate query changes`, with the reason. Of exports, only
    shards with other members are written; files of `curate export --format` are written again.
    Drift is measured by cluster: how far new samples are from the centroids, against those that
    these were fitted on. Sets that cannot be brought up to date so (probes and what they score,
    duplicates, validations) are named with their commands. A killed call is continued by the next.
    """
    catalog = Catalog(catalog)
    with catalog.write_lock(catalog.path / "locks" / "update", "an update of this catalog"):
        _check_same_embeddings(catalog)
        _log_replaced_shards(catalog)
        changed, obstacles = _update_sets(catalog, Resources(workers), refit=refit)
        changed += [f"list {location}" for location in update_lists(catalog)]
        if compare:
            compare_with_scratch(catalog, workers)
    if not changed:
        log.info("nothing to do: every set that an update can change is up to date")
    _log_obstacles(catalog, obstacles)
    return changed


class _Set(NamedTuple):
    """A set, by its kind and name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


# The kind of set that a stage makes.
_KINDS_BY_STAGE = {
    "embed": "embedding",
    "remove": "embedding",
    "cluster": "clustering",
    "probe": "probe",
    "score": "scoring",
    "dedup": "selection",
    "select": "selection",
}


def _check_same_embeddings(catalog: Catalog) -> None:
    """CurateError where vectors were made anew, perhaps by other weights, since they were used."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select kind, named_sets.name, parents.name, list(parents.run_id) "
            "from named_sets join runs using (run_id) "
            "join runs as parents on list_contains(runs.parent_run_ids, parents.run_id) "
            "where kind in ('clustering', 'scoring') and parents.stage in ('embed', 'remove') "
            "group by all order by all"
        ).fetchall()
        embeddings = {
            name: set(sets.list_run_ids(connection, record))
            for name in sets.list_sets(connection, EmbeddingRecord)
            if (record := sets.find_set(connection, EmbeddingRecord, name)) is not None
        }
    for kind, name, embedding, run_ids in rows:
        if embedding in embeddings and not embeddings[embedding] & set(run_ids):
            dependent = catalog.require(SET_TYPES_BY_KIND[kind], name)
            raise CurateError(
                f"the embedding '{embedding}' was made anew, perhaps by other weights, since the "
                f"{kind} '{name}' was made from it: `{remake_command(catalog, dependent)}` makes "
                "that anew"
            )


def _log_replaced_shards(catalog: Catalog) -> None:
    """Say which new shards have the names of removed ones: their samples are new samples."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "with removed as (select distinct unnest((arguments->'shards')::text[]) as url "
            "from runs where stage = 'remove' and (arguments->'shards') is not null) "
            "select shard_id, url from shards semi join removed using (url) order by 1"
        ).fetchall()
        shard_runs = connection.execute("select known_shards from selections").fetchall()
    shard_ids = np.array([shard_id for shard_id, _ in rows], np.int64)
    is_known = np.zeros(len(rows), bool)
    for (runs,) in shard_runs:
        is_known |= are_in_runs(shard_ids, runs or [])
    replaced = [url for (_, url), is_old in zip(rows, is_known, strict=True) if not is_old]
    if shard_runs and replaced:
        log.warning(
            "%s replaced since the selections were drawn, such as '%s': their samples are new ones",
            count_of(len(replaced), "shard was", "shards were"),
            replaced[0],
        )


def _update_sets(
    catalog: Catalog, resources: Resources, *, refit: bool
) -> tuple[list[str], dict[_Set, str]]:
    """Update each set after those that it was made from.

    Returns those that changed, and why others could not be brought up to date.
    """
    with catalog.reading() as connection:
        rows = connection.execute(
            "select kind, name from named_sets where kind in (select unnest(?)) order by run_id",
            [list(_UPDATES)],
        ).fetchall()
    changed: list[str] = []
    obstacles: dict[_Set, str] = {}
    for named_set in (_Set(*row) for row in rows):
        record = catalog.require(SET_TYPES_BY_KIND[named_set.kind], named_set.name)
        parents = _list_parents(catalog, record)
        blocked = next((parent for parent in parents if parent in obstacles), None)
        reason = f"it is from the {blocked.kind} '{blocked.name}'" if blocked else None
        try:
            outcome = _UPDATES[named_set.kind](catalog, record, resources, refit, reason)
        except _NotUpdatedError as error:
            obstacles[named_set] = str(error)
        else:
            if outcome:
                changed.append(str(named_set))
    return changed, obstacles


class _NotUpdatedError(Exception):
    """A set cannot be brought up to date by this command; the text says why."""


def _update_clustering(
    catalog: Catalog,
    record: ClusteringRecord,
    resources: Resources,
    refit: bool,
    blocked: str | None,
) -> bool:
    if blocked:
        raise _NotUpdatedError(blocked)
    if catalog.find(EmbeddingRecord, record.embedding) is None:
        raise _NotUpdatedError(f"its embedding '{record.embedding}' was removed")
    is_changed = _has_old_parents(catalog, record)
    if is_changed:
        extend_clustering(catalog, record, resources)
    if refit and has_drifted(catalog, record.clustering):
        current = catalog.require(ClusteringRecord, record.clustering)
        fit_again(catalog, current, resources.workers)
        return True
    return is_changed


def _update_scoring(
    catalog: Catalog, record: ScoringRecord, resources: Resources, refit: bool, blocked: str | None
) -> bool:
    if not _has_old_parents(catalog, record) and not has_other_samples(catalog, record):
        return False
    reason = blocked or find_obstacle(catalog, record)
    if reason:
        raise _NotUpdatedError(reason)
    extend_scoring(catalog, record, resources)
    return True


def _update_selection(
    catalog: Catalog,
    record: SelectionRecord,
    resources: Resources,
    refit: bool,
    blocked: str | None,
) -> bool:
    try:
        source = load_source(catalog, record)
    except CurateError as error:
        if _has_old_parents(catalog, record) or has_other_shards(catalog, record):
            raise _NotUpdatedError(str(error)) from error
        return False
    is_whole = source.within is None and source.original is None
    has_changed = _has_old_parents(catalog, record) or (
        is_whole and has_other_shards(catalog, record)
    )
    if blocked and source.unscored == "last":
        raise _NotUpdatedError(blocked)
    if not has_changed:
        return False
    draw_again(catalog, record, source, workers=resources.workers)
    return True


def _update_export(
    catalog: Catalog, record: ExportRecord, resources: Resources, refit: bool, blocked: str | None
) -> bool:
    if blocked:
        raise _NotUpdatedError(blocked)
    if not _has_old_parents(catalog, record) and not is_unfinished(record):
        return False
    if reason := find_export_obstacle(catalog, record):
        raise _NotUpdatedError(reason)
    update_export(catalog, record, resources)
    return True


_Update = Callable[[Catalog, Any, Resources, bool, str | None], bool]
_UPDATES: dict[str, _Update] = {
    "clustering": _update_clustering,
    "scoring": _update_scoring,
    "selection": _update_selection,
    "export": _update_export,
}


def _has_old_parents(catalog: Catalog, record: SetRecord) -> bool:
    """Whether a set was made from one that has changed since."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select 1 from (select unnest(parent_run_ids) as parent from runs where run_id = ?) "
            "where parent not in (select run_id from named_sets)",
            [record.last_run_id],
        ).fetchall()
    return bool(rows)


def _list_parents(catalog: Catalog, record: SetRecord) -> list[_Set]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select stage, name from runs where run_id in "
            "(select unnest(parent_run_ids) from runs where run_id = ?)",
            [record.last_run_id],
        ).fetchall()
    return [_Set(_KINDS_BY_STAGE.get(stage, stage), name) for stage, name in rows]


def _log_obstacles(catalog: Catalog, obstacles: dict[_Set, str]) -> None:
    """Name the sets that are out of date still, and what makes them again."""
    for named_set, reason in obstacles.items():
        record = catalog.require(SET_TYPES_BY_KIND[named_set.kind], named_set.name)
        log.warning(
            "the %s '%s' stays as it is, %s: `%s` makes it again",
            named_set.kind,
            named_set.name,
            reason,
            remake_command(catalog, record),
        )
    stale_sets = [
        _Set(kind, name)
        for kind, name in find_stale(catalog)
        if kind not in _UPDATES and kind != EmbeddingRecord.kind
    ]
    if stale_sets:
        log.warning(
            "an update does not make again: %s",
            ", ".join(f"the {named_set.kind} '{named_set.name}'" for named_set in stale_sets),
        )
