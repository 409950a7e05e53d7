"""`curate score`: run a metric over the corpus, shard by shard, and commit the scores."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ClusteringRecord,
    EmbeddingRecord,
    ProbeRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.catalog.sql import quote_patterns
from curate.errors import OptionError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.shard_patterns import hide_patterns
from curate.options import EmbeddingName, Option, Seed, SetName, Within, Workers, verb
from curate.package_data import read_sql
from curate.progress import log, progress_bar
from curate.stages.inputs.corpus import (
    CORPUS_INPUTS,
    ClusteringName,
    CorpusInputs,
    DistanceName,
    ProbeName,
    Source,
    check_options,
    list_options,
)
from curate.stages.score.metric_lookup import find_metric, metric_parameters, split_spec
from curate.stages.score.worker import ScoreShard
from curate.stages.staleness import find_stale, metric_checksum
from curate.storage import files as storage
from curate.storage.atomic import atomic_write

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# More than this of a metric's inputs is not stored for later updates.
_MAX_STORED_BYTES = 1 << 28
# Below, two halves of the models disagree so far that the ranking is mostly noise.
RELIABLE = 0.7


def check_metric(metric: str) -> None:
    """OptionError for a metric that does not exist.

    A parameter that is no input is a column of the catalog, which is looked for later.
    """
    find_metric(metric)


def check_metric_file(spec: str) -> None:
    """OptionError for what is not FILE.py:NAME, or for a metric that cannot be used."""
    if ":" not in spec:
        raise OptionError(f"--metric-file {spec}: write FILE.py:NAME")
    check_metric(spec)


# What `curate cluster` has stored of each sample, by the metric that would compute it once more.
_ASSIGNED_COLUMNS = {"ssl_prototypes": "distance"}


def _check_options(arguments: Mapping[str, Any]) -> None:
    metrics = _list_metrics(arguments["metrics"], arguments["metric_file"])
    if not metrics:
        raise OptionError("name metrics (`curate list metrics`), or --metric-file FILE.py:NAME")
    if arguments["name"] and len(metrics) != 1:
        raise OptionError("--name goes with one metric: score the others in calls of their own")
    all_parameters = [metric_parameters(metric) for metric in metrics]
    accepted = {name for parameters in all_parameters for name in list_options(parameters)}
    check_options(arguments["options"] or {}, accepted, "these metrics have none")
    if arguments["target"] and not any("target_vectors" in names for names in all_parameters):
        raise OptionError("--target is for metrics such as target_similarity: leave it out")


@verb(check=_check_options)
def score(
    catalog: Catalog | str | Path,
    metrics: Annotated[
        list[str] | str | None, Option("Names from `curate list metrics`.", check=check_metric)
    ] = None,
    *,
    metric_file: Annotated[
        list[str] | str | None,
        Option(
            "A function of your own; repeatable.",
            metavar="FILE.py:NAME",
            aliases=("from",),
            check=check_metric_file,
        ),
    ] = None,
    embedding: EmbeddingName = None,
    clustering: ClusteringName = None,
    probe: ProbeName = None,
    distance: DistanceName = None,
    target: Annotated[
        list[str] | str | None,
        Option(
            "The target set of target_similarity, as shards or as a catalog; repeatable.",
            metavar="SHARDS|CATALOG",
        ),
    ] = None,
    options: Annotated[
        dict[str, str] | None,
        Option(
            "An option of the metric itself; repeatable.",
            metavar="NAME=VALUE",
            flag="--option",
            short="-o",
        ),
    ] = None,
    within: Within = None,
    seed: Seed = 0,
    workers: Workers = 1,
    name: SetName = None,
) -> list[str]:
    """Score every sample by each metric, and return the scorings' names, by default the metrics'.

    A sample that a metric cannot score gets NULL, and so does every sample that is not in the
    selection `within`, which is all of the corpus for these scorings; probe and clustering are then
    those made within it. The default name has the options that were given and are not the defaults,
    so that scorings from several probes stand side by side: `el2n-mlp-epochs4` is that by
    `--probe mlp-epochs4`. Raises CurateError that names the command which makes a missing input.
    """
    specs = [_absolute_spec(metric) for metric in _list_metrics(metrics, metric_file)]
    catalog = Catalog(catalog)
    required: tuple[tuple[type[SetRecord], str | None], ...] = (
        (EmbeddingRecord, embedding),
        (ClusteringRecord, clustering),
        (ProbeRecord, probe),
        (SelectionRecord, within),
    )
    for record_type, option in required:
        if option is not None:
            catalog.require(record_type, option)
    all_inputs = [
        MetricInputs(
            catalog,
            f"the metric '{spec}'",
            metric_parameters(spec),
            embedding,
            clustering,
            probe,
            distance,
            seed,
            within,
            spec,
            target_option=_list_targets(target),
        )
        for spec in specs
    ]
    names = [name or _default_name(inputs, options or {}) for inputs in all_inputs]
    for inputs, scoring in zip(all_inputs, names, strict=True):
        catalog.check_column_name(ScoringRecord, scoring)
        _check_inputs(inputs)
    return [
        _score_one(inputs, scoring, options or {}, Resources(workers))
        for inputs, scoring in zip(all_inputs, names, strict=True)
    ]


def _list_targets(target: list[str] | str | None) -> list[str]:
    """The catalog as it was given, or patterns of shards without the secrets in them."""
    patterns = [target] if isinstance(target, str) else target or []
    is_catalog = (
        len(patterns) == 1 and (Path(patterns[0]).expanduser() / "catalog.duckdb").is_file()
    )
    return patterns if is_catalog else hide_patterns(patterns)


def _check_inputs(inputs: "MetricInputs") -> None:
    """Raises CurateError for what is missing, before anything is computed."""
    _ = inputs.columns
    if inputs.uses_captions:
        inputs.check_captions()
    if inputs.uses_target:
        _ = inputs.target


def _list_metrics(
    metrics: list[str] | str | None, metric_files: list[str] | str | None
) -> list[str]:
    specs: list[str] = []
    for value in (metrics, metric_files):
        specs += [value] if isinstance(value, str) else value or []
    return specs


def _absolute_spec(metric: str) -> str:
    """The file of a user's own metric by its absolute path, for workers and for `runs`."""
    path, function_name = split_spec(metric)
    return f"{path.expanduser().absolute()}:{function_name}" if path else metric


@dataclass
class MetricInputs(CorpusInputs):
    """The inputs of one metric."""

    metric: str


def _default_name(inputs: MetricInputs, values: dict[str, str]) -> str:
    labels = [option.label for option in inputs.given_options(values)]
    return "-".join(filter(None, [split_spec(inputs.metric)[1], *labels]))


def _command_options(inputs: MetricInputs, name: str, values: dict[str, str]) -> list[str]:
    """The words after the metric that make this scoring again."""
    words = [
        word for option in inputs.given_options(values) for word in (option.flag, option.value)
    ]
    return words if name == _default_name(inputs, values) else [*words, "--name", name]


class ScoringPlan(NamedTuple):
    """What a scoring is made from, and how.

    `options` are the metric's own, `arguments` all that the scores depend on.
    """

    source: Source
    options: dict[str, Any]
    arguments: dict[str, Any]
    code_checksum: str
    fingerprint: str


def plan_scoring(inputs: MetricInputs, given_options: dict[str, str]) -> ScoringPlan:
    """The plan of a scoring; `given_options` are the metric's options by name."""
    source = inputs.find_source()
    options = inputs.parse_options(given_options)
    arguments: dict[str, Any] = {"metric": inputs.metric, **options}
    if inputs.uses_vectors:
        arguments["distance"] = inputs.distance
    if inputs.uses_target:
        arguments["target"] = inputs.target_option
    if inputs.uses_seed:
        arguments["seed"] = inputs.seed
    if inputs.within:
        arguments["within"] = inputs.within.selection
    code_checksum = metric_checksum(inputs.metric)
    fingerprint = provenance.fingerprint("score", arguments, source.content, code_checksum)
    return ScoringPlan(source, options, arguments, code_checksum, fingerprint)


def _score_one(
    inputs: MetricInputs, name: str, given_options: dict[str, str], resources: Resources
) -> str:
    catalog, metric = inputs.catalog, inputs.metric
    plan = plan_scoring(inputs, given_options)
    source, options, arguments, code_checksum, fingerprint = plan
    existing = catalog.find_up_to_date(ScoringRecord, name, fingerprint)
    if existing:
        log.info(
            "nothing to do: '%s' is this scoring already (%s samples)",
            name,
            f"{existing.num_samples:,}",
        )
        return name
    previous = catalog.find(ScoringRecord, name)
    column = _find_assigned_column(inputs)
    corpus_inputs: dict[str, Any] = {}
    if column is None:
        corpus_inputs = {
            key: CORPUS_INPUTS[key](inputs) for key in inputs.names if key in CORPUS_INPUTS
        }
    with (
        catalog.record_run(
            "score",
            name,
            {
                **arguments,
                "source": source.name,
                "given": _command_options(inputs, name, given_options),
            },
            parents=source.parents,
            fingerprint=fingerprint,
            code_checksum=code_checksum,
        ) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        score_files: list[str] = []
        if column is None:
            score_files = map_shards(inputs, options | corpus_inputs, folder, resources)
        record = ScoringRecord(
            scoring=name,
            metric=metric.rpartition("/")[2],
            source=source.name,
            arguments=provenance.canonical_json(arguments),
            num_samples=0,  # counted in the commit
            num_null=0,
            reliability=None,
            fingerprint=fingerprint,
            run_id=run_id,
        )
        if column is None:
            stored_inputs = _stored_inputs(inputs, corpus_inputs)
            record = _commit(catalog, record, score_files, inputs.has_halves, stored_inputs)
        else:
            record = _copy_assigned(inputs, record, column)
    _log_summary(catalog, record, is_replaced=previous is not None)
    return name


def _find_assigned_column(inputs: MetricInputs) -> str | None:
    """The column of `assignments` that has the metric's scores already; None where none has.

    It has them where the clusters are of the same samples and vectors as the scores would be.
    """
    column = _ASSIGNED_COLUMNS.get(inputs.metric)
    if column is None:
        return None
    catalog, clustering = inputs.catalog, inputs.clustering
    made_within = catalog.run_arguments(clustering.run_id).get("within")
    is_same = (
        (inputs.embedding, inputs.distance) == (clustering.embedding, clustering.distance)
        and made_within in (None, inputs.within_option)
        and not find_stale(catalog, record=clustering)
    )
    return column if is_same else None


def _copy_assigned(inputs: MetricInputs, record: ScoringRecord, column: str) -> ScoringRecord:
    """Store a column of `assignments` as scores; a sample without one has NULL."""
    members = f" and {sets.members_condition(inputs.within.selection)}" if inputs.within else ""
    rows = (
        f"select sample_id, case when isfinite({column}) then {column}::double end as score "
        f"from assignments where clustering = $clustering{members}"
    )
    parameters = {"clustering": inputs.clustering.clustering}
    with inputs.catalog.writing() as connection:
        sets.check_column_name(connection, ScoringRecord, record.scoring)
        ((num_samples, num_scored),) = connection.execute(
            f"select (select count(*) from samples), (select count(score) from ({rows}))",
            parameters,
        ).fetchall()
        record = replace(record, num_samples=num_samples, num_null=num_samples - num_scored)
        if record.num_null:
            rows = f"select sample_id, score from samples left join ({rows}) using (sample_id)"
        sets.replace_set(connection, record)
        connection.execute(
            "insert into scores (scoring, sample_id, score) "
            f"select $scoring, sample_id, score from ({rows})",
            {"scoring": record.scoring, **parameters},
        )
        sets.refresh_sample_scores(connection)
    return record


def map_shards(
    inputs: MetricInputs,
    arguments: dict[str, Any],
    folder: str,
    resources: Resources,
    shard_ids: list[int] | None = None,
) -> list[str]:
    """Score every shard, or those given; the files with the scores, in the order of the ids."""
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    shared_files = []
    for name, array in arrays.items():
        location = storage.join(folder, "shared", f"{name}.npy")
        with atomic_write(location) as temporary:
            np.save(temporary, array)
        shared_files.append(location)
    task = ScoreShard(
        metric=inputs.metric,
        options={name: value for name, value in arguments.items() if name not in arrays},
        distance=inputs.distance if inputs.uses_vectors else "cosine",
        shared_files=tuple(shared_files),
        folder=folder,
        score_halves=inputs.has_halves,
    )
    with inputs.catalog.reading() as connection:
        ((total,),) = connection.execute(
            "select count(*) from samples "
            "where $1::bigint[] is null or shard_id in (select unnest($1::bigint[]))",
            [shard_ids],
        ).fetchall()
    with progress_bar("score", total) as advance:
        outcomes = engine.map_or_raise(
            task,
            inputs.shards(shard_ids),
            resources,
            advance=advance,
            describe_item=lambda shard: (
                f"cannot score sample {shard.sample_ids[0]} and those after it"
            ),
        )
        return sorted(storage.join(folder, name) for _, name in outcomes)


def _commit(
    catalog: Catalog,
    record: ScoringRecord,
    score_files: list[str],
    has_halves: bool,
    stored_inputs: dict[str, np.ndarray],
) -> ScoringRecord:
    with storage.localize(score_files) as paths, catalog.writing() as connection:
        parameters = {"files": quote_patterns(paths)}
        sets.check_column_name(connection, ScoringRecord, record.scoring)
        ((count, num_null),) = connection.execute(
            "select count(*), count(*) - count(score) "
            "from read_parquet($files, hive_partitioning = false)",
            parameters,
        ).fetchall()
        reliability = None
        if has_halves:
            ((reliability,),) = connection.execute(
                read_sql("stages/reliability"), parameters
            ).fetchall()
        record = replace(record, num_samples=count, num_null=num_null, reliability=reliability)
        sets.replace_set(connection, record)
        connection.execute(
            "insert into scores (scoring, sample_id, score, standard_error) "
            "select $name, sample_id, score, standard_error "
            "from read_parquet($files, hive_partitioning = false)",
            {"name": record.scoring, **parameters},
        )
        _store_inputs(connection, record.scoring, stored_inputs)
        sets.refresh_sample_scores(connection)
    return record


def _stored_inputs(inputs: MetricInputs, corpus_inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the metric was given of the whole corpus, by which an update scores new samples.

    Centroids have a file of their own; what comes from a probe cannot be made for new samples.
    """
    if inputs.uses_probe:
        return {}
    arrays = {
        name: value
        for name, value in corpus_inputs.items()
        if isinstance(value, np.ndarray) and name != "centroids"
    }
    if {"labels", "class_means"} & set(inputs.names):
        arrays["classes"] = np.array(list(inputs.classes))
    is_small = sum(array.nbytes for array in arrays.values()) <= _MAX_STORED_BYTES
    return arrays if is_small else {}


def _store_inputs(
    connection: "DuckDBPyConnection", scoring: str, arrays: dict[str, np.ndarray]
) -> None:
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        connection.execute(
            "insert into scoring_inputs (scoring, input, array_file) values (?, ?, ?)",
            [scoring, name, file.getvalue()],
        )


def _log_summary(catalog: Catalog, record: ScoringRecord, *, is_replaced: bool) -> None:
    with catalog.reading() as connection:
        ((standard_error,),) = connection.execute(
            "select median(standard_error) from scores where scoring = ?", [record.scoring]
        ).fetchall()
    summary = [f"{record.num_samples:,} samples"]
    if record.num_null:
        summary.append(f"{record.num_null:,} could not be scored (NULL)")
    if standard_error is not None:
        summary.append(f"standard error {standard_error:.3f} (median)")
    if record.reliability is not None:
        summary.append(f"reliability {record.reliability:.2f}")
    suffix = " replaced" if is_replaced else ""
    log.info("scoring '%s'%s: %s", record.scoring, suffix, ", ".join(summary))
    if record.reliability is not None and record.reliability < RELIABLE:
        log.warning(
            "two halves of the probe rank by '%s' alike only to %.2f (below %.1f): "
            "train more models (--count), or take such scores as noise",
            record.scoring,
            record.reliability,
            RELIABLE,
        )
