"""New samples are scored as those before them: by the same centroids and class means."""

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord
from curate.catalog.sql import quote_patterns
from curate.errors import CurateError
from curate.execution.types import Resources
from curate.progress import log
from curate.stages.inputs.corpus import CORPUS_INPUTS
from curate.stages.score.metric_lookup import metric_parameters
from curate.stages.score.stage import MetricInputs, map_shards, plan_scoring, score
from curate.stages.staleness import metric_checksum
from curate.storage import files as storage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Inputs of the whole corpus that an update finds where the scoring did.
_NOT_STORED = {"centroids", "distance", "seed"}


def find_obstacle(catalog: Catalog, record: ScoringRecord) -> str | None:
    """Why new samples cannot be scored as the others were; None where they can.

    Models of probes are not stored, only what they said of each sample.
    """
    run = _load_run(catalog, record)
    if run is None or run.stage != "score" or "given" not in run.arguments:
        return "its scores were computed elsewhere"
    try:
        if metric_checksum(run.arguments["metric"]) != run.code_checksum:
            return "it was made by other code than there is now"
        inputs = _make_inputs(catalog, record, run.arguments)
        if inputs.uses_probe:
            return f"models of the probe '{record.source}' have not seen the new samples"
        if inputs.uses_vectors:
            _ = inputs.embedding  # which may have been removed
        if inputs.uses_target:
            _ = inputs.target
    except CurateError as error:
        return str(error)
    return None


def has_other_samples(catalog: Catalog, record: ScoringRecord) -> bool:
    """Whether shards came or left since a scoring was made."""
    new_shards, removed_shards = _find_difference(catalog, record, None)
    return bool(new_shards or removed_shards)


def extend_scoring(catalog: Catalog, record: ScoringRecord, resources: Resources) -> str:
    """Bring a scoring up to date, by what it was made with if that is still there; returns how.

    Where its clustering was fitted anew, or what it was made with was not stored, all samples are
    scored again. Raises CurateError.
    """
    run = _load_run(catalog, record)
    if run is None:
        raise CurateError(f"the run that made '{record.scoring}' is not in the catalog")
    inputs = _make_inputs(catalog, record, run.arguments)
    stored = _load_stored_inputs(catalog, record.scoring)
    needed = {name for name in inputs.names if name in CORPUS_INPUTS} - _NOT_STORED
    if {"labels", "class_means"} & set(inputs.names):
        needed.add("classes")
    if not needed <= stored.keys() or not _has_same_sources(catalog, run, inputs):
        score_again(catalog, record, resources)
        return "made again"
    if "classes" in stored:
        inputs.classes = {str(label): index for index, label in enumerate(stored.pop("classes"))}
    options = _own_options(inputs, run.arguments)
    plan = plan_scoring(inputs, {name: str(value) for name, value in options.items()})
    corpus_inputs = {
        name: stored[name] if name in stored else CORPUS_INPUTS[name](inputs)
        for name in inputs.names
        if name in CORPUS_INPUTS
    }
    new_shards, removed_shards = _find_difference(
        catalog, record, inputs.within_option, inputs.embedding if inputs.uses_vectors else None
    )
    with (
        catalog.record_run(
            "score",
            record.scoring,
            {**run.arguments, "update_of": record.run_id},
            parents=plan.source.parents,
            fingerprint=plan.fingerprint,
            code_checksum=plan.code_checksum,
        ) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        files = map_shards(inputs, options | corpus_inputs, folder, resources, new_shards)
        with storage.localize(files) as paths, catalog.writing() as connection:
            if sets.find_set(connection, ScoringRecord, record.scoring) != record:
                raise CurateError(f"'{record.scoring}' was made anew in the meantime: update again")
            updated = replace(record, fingerprint=plan.fingerprint, run_id=run_id)
            shard_ids = new_shards + removed_shards
            num_new = _replace_rows(connection, updated, shard_ids, quote_patterns(paths))
    log.info("scoring '%s': %s samples scored as the others", record.scoring, f"{num_new:,}")
    return "extended"


class _Run(NamedTuple):
    """The run that made a scoring."""

    stage: str
    arguments: dict[str, Any]
    parent_run_ids: list[int]
    code_checksum: str | None


def _load_run(catalog: Catalog, record: ScoringRecord) -> _Run | None:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select stage, arguments, parent_run_ids, code_checksum from runs where run_id = ?",
            [record.run_id],
        ).fetchall()
    return _Run(*rows[0])._replace(arguments=json.loads(rows[0][1])) if rows else None


def _make_inputs(
    catalog: Catalog, record: ScoringRecord, arguments: dict[str, Any]
) -> MetricInputs:
    """The inputs of the metric, of the sets that the scoring was made from."""
    source_options = _parse_given(arguments["given"])
    metric = arguments["metric"]
    inputs = MetricInputs(
        catalog,
        f"the metric '{metric}'",
        metric_parameters(metric),
        source_options.get("--embedding"),
        source_options.get("--clustering"),
        source_options.get("--probe"),
        arguments.get("distance"),
        arguments.get("seed", 0),
        arguments.get("within"),
        metric,
        target_option=arguments.get("target"),
    )
    if inputs.uses_probe:
        return replace(inputs, probe_option=record.source)
    if inputs.uses_clustering:
        return replace(inputs, clustering_option=record.source)
    if inputs.uses_vectors or "labels" in inputs.names:
        return replace(inputs, embedding_option=record.source)
    return inputs


def _parse_given(words: list[str]) -> dict[str, str]:
    """The options that a scoring was made with, from flags and values in turn."""
    return dict(zip(words[::2], words[1::2], strict=False))


def _load_stored_inputs(catalog: Catalog, scoring: str) -> dict[str, np.ndarray]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select input, array_file from scoring_inputs where scoring = ?", [scoring]
        ).fetchall()
    return {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in rows}


def _has_same_sources(catalog: Catalog, run: _Run, inputs: MetricInputs) -> bool:
    """Whether what a scoring was made from has only grown since.

    The embedding has been looked at before; a selection may be another.
    """
    with catalog.reading() as connection:
        stages = connection.execute(
            "select run_id, stage from runs where run_id in (select unnest(?))",
            [run.parent_run_ids],
        ).fetchall()
        states: set[int] = set()
        if inputs.uses_clustering:
            states.update(sets.list_update_run_ids(connection, inputs.clustering.run_id))
    states.update(column.run_id for column in inputs.columns.values())
    may_differ = ("embed", "remove", "select", "dedup")
    return all(stage in may_differ or run_id in states for run_id, stage in stages)


def score_again(
    catalog: Catalog,
    record: ScoringRecord,
    resources: Resources,
    *,
    clustering: str | None = None,
    name: str | None = None,
) -> str:
    """Score all samples with the options of a scoring, perhaps by another clustering.

    Returns the name.
    """
    arguments = catalog.run_arguments(record.run_id)
    inputs = _make_inputs(catalog, record, arguments)
    is_file = ":" in inputs.metric
    (scoring,) = score(
        catalog,
        None if is_file else [inputs.metric],
        metric_file=[inputs.metric] if is_file else None,
        embedding=inputs.embedding_option,
        clustering=clustering or inputs.clustering_option,
        probe=inputs.probe_option,
        distance=inputs.distance_option,
        options={option: str(value) for option, value in _own_options(inputs, arguments).items()},
        target=inputs.target_option,
        within=inputs.within_option,
        seed=inputs.seed,
        workers=resources.workers,
        name=name or record.scoring,
    )
    return scoring


def _own_options(inputs: MetricInputs, arguments: dict[str, Any]) -> dict[str, Any]:
    """The metric's own options, as the scoring was made with."""
    return {
        name: arguments[name] for name in inputs.option_defaults if arguments.get(name) is not None
    }


def _find_difference(
    catalog: Catalog, record: ScoringRecord, within: str | None, embedding: str | None = None
) -> tuple[list[int], list[int]]:
    """The shards to score, and those that are gone.

    Within a selection, shards of which it has other samples than before are scored again.
    """
    with catalog.reading() as connection:
        rows = connection.execute(
            "select distinct sample_id >> 24 from scores where scoring = ?", [record.scoring]
        ).fetchall()
        scored = {shard_id for (shard_id,) in rows}
        rows = connection.execute("select shard_id from shards where num_samples > 0").fetchall()
        existing = {shard_id for (shard_id,) in rows}
        changed: set[int] = set()
        if within:
            rows = connection.execute(
                "select distinct scores.sample_id >> 24 from scores "
                "left join (select sample_id from members where selection = $within) as chosen "
                "on chosen.sample_id = scores.sample_id where scoring = $scoring "
                "and (score is null) <> (chosen.sample_id is null)",
                {"within": within, "scoring": record.scoring},
            ).fetchall()
            changed = {shard_id for (shard_id,) in rows} & existing
        elif embedding:  # shards that another embedding brought, before this one had them
            rows = connection.execute(
                "select shard_id from embedded_shards where embedding = $embedding "
                "and num_embedded > 0 and shard_id not in (select distinct sample_id >> 24 "
                "from scores where scoring = $scoring and score is not null)",
                {"embedding": embedding, "scoring": record.scoring},
            ).fetchall()
            changed = {shard_id for (shard_id,) in rows} & existing
    return sorted(existing - scored | changed), sorted(scored - existing)


def _replace_rows(
    connection: "DuckDBPyConnection", record: ScoringRecord, shard_ids: list[int], paths: list[str]
) -> int:
    """Replace the scores of these shards, and the scoring's row; returns how many were inserted."""
    connection.execute(
        "delete from scores where scoring = ? and sample_id >> 24 in (select unnest(?::bigint[]))",
        [record.scoring, shard_ids],
    )
    num_new = 0
    if paths:
        ((num_new,),) = connection.execute(
            "insert into scores (scoring, sample_id, score, standard_error) "
            "select $name, sample_id, score, standard_error "
            "from read_parquet($files, hive_partitioning = false)",
            {"name": record.scoring, "files": paths},
        ).fetchall()
    ((num_samples, num_null),) = connection.execute(
        "select count(*), count(*) - count(score) from scores where scoring = ?", [record.scoring]
    ).fetchall()
    connection.execute(
        "update scorings set num_samples = ?, num_null = ?, fingerprint = ?, run_id = ? "
        "where scoring = ?",
        [num_samples, num_null, record.fingerprint, record.run_id, record.scoring],
    )
    return int(num_new)
