"""`curate score`: run a metric over the corpus, shard by shard, and put the scores into the catalog."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from curate import engine, provenance, resources, sets, storage
from curate import metrics as known_metrics
from curate.atomic import replacing
from curate.catalog import Catalog
from curate.engine import Resources
from curate.engine.scoring import OF_SHARD, ScoreShard
from curate.errors import CurateError
from curate.progress import bar, log
from curate.stages.inputs import OF_CORPUS, Corpus

RELIABLE = 0.7  # below, two halves of the models disagree so far that the ranking is mostly noise


def score(
    catalog: Catalog | str | Path,
    metrics: list[str] | str,
    *,
    embedding: str | None = None,
    clustering: str | None = None,
    probe: str | None = None,
    distance: str | None = None,
    options: dict[str, str] | None = None,
    seed: int = 0,
    workers: int = 1,
    name: str | None = None,
) -> list[str]:
    """Score every sample by each metric, and return the scorings' names (the metrics', unless `name` is given).

    A metric is a name, or FILE.py:NAME for a function in a file. `distance` is cosine (default) or euclidean; for
    metrics on a clustering it is the clustering's own. `options` are those of the metric itself. A sample that a
    metric cannot score gets NULL. Raises CurateError that names the command which makes a missing input.
    """
    chosen = [_absolute(metric) for metric in ([metrics] if isinstance(metrics, str) else metrics)]
    if name and len(chosen) != 1:
        raise CurateError("--name goes with one metric: score the others in calls of their own")
    check(chosen, options=options)
    catalog = Catalog(catalog)
    for kind, option in (("embedding", embedding), ("clustering", clustering), ("probe", probe)):
        if option is not None:
            catalog.require(kind, option)
    names = [name or metric.rpartition(":")[2] for metric in chosen]
    for each in names:
        catalog.check_column("scoring", each)
    return [
        _score_one(Corpus(catalog, metric, embedding, clustering, probe, distance, seed), each, options or {}, workers)
        for metric, each in zip(chosen, names, strict=True)
    ]


def check(metrics: list[str] | str, *, options: dict[str, str] | None = None, **others: Any) -> None:
    """CurateError for a metric that there is none of, that asks for what is no input, or that has no such option."""
    chosen = [metrics] if isinstance(metrics, str) else metrics
    for metric in chosen:
        for name, parameter in inspect.signature(known_metrics.find(metric)).parameters.items():
            if name not in OF_CORPUS | OF_SHARD and parameter.default is parameter.empty:
                known = ", ".join(sorted(OF_CORPUS | OF_SHARD))
                raise CurateError(f"the metric '{metric}' asks for '{name}', which is no input; there are: {known}")
    takers = {option for metric in chosen for option in _defaults(metric)}
    for option in options or {}:
        if option not in takers:
            there_are = f"there are: {', '.join(sorted(takers))}" if takers else "these metrics have none"
            raise CurateError(f"--option {option}: no such option; {there_are}")


def _absolute(metric: str) -> str:
    """The file of a user's own metric by its full path, for workers and for the books."""
    file, colon, name = metric.rpartition(":")
    return f"{Path(file).expanduser().absolute()}:{name}" if colon else metric


def _defaults(metric: str) -> dict[str, Any]:
    """The options of a metric: its parameters that are no inputs, with their defaults."""
    parameters = inspect.signature(known_metrics.find(metric)).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name not in OF_CORPUS | OF_SHARD}


def _options(metric: str, given: dict[str, str]) -> dict[str, Any]:
    """The metric's options with what is given put in, each of its default's type."""
    options = _defaults(metric)
    for name in options.keys() & given.keys():
        try:
            options[name] = type(options[name])(given[name])
        except ValueError as error:
            raise CurateError(f"--option {name}={given[name]}: {error}") from error
    return options


def _score_one(corpus: Corpus, name: str, given: dict[str, str], workers: int) -> str:
    catalog, metric = corpus.catalog, corpus.metric
    source, made_from, content = _source(corpus)
    options = _options(metric, given)
    arguments: dict[str, Any] = {"metric": metric, **options}
    if corpus.of_vectors:
        arguments["distance"] = corpus.distance
    if "seed" in corpus.inputs:
        arguments["seed"] = corpus.seed
    fingerprint = provenance.fingerprint("score", arguments, content, known_metrics.source(metric))
    made = catalog.made("scoring", name, fingerprint)
    if made:
        log.info("nothing to do: '%s' is this scoring already (%s samples)", name, f"{made['num_samples']:,}")
        return name
    old = catalog.head("scoring", name)
    of_corpus = options | {key: OF_CORPUS[key](corpus) for key in corpus.inputs if key in OF_CORPUS}
    with (
        catalog.run("score", name, {**arguments, "source": source}, made_from=made_from, fingerprint=fingerprint) as run_id,
        catalog.exchange(run_id) as folder,
    ):
        files = _map(corpus, of_corpus, folder, Resources(workers))
        row = {"scoring": name, "metric": metric.rpartition("/")[2], "source": source,
               "arguments": provenance.canonical(arguments), "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        _commit(catalog, row, files, corpus.halves)
    _summarize(catalog, name, replaced=old is not None)
    return name


def _source(corpus: Corpus) -> tuple[str | None, int | None, str]:
    """The set that a scoring is made from, the run that made it, and a text that stands for all that it is made from."""
    if corpus.of_probe:
        row = corpus.probe
        corpus.catalog.warn_if_out_of_date("probe", row["probe"])
        of_vectors = corpus.catalog.embedding_fingerprint(corpus.embedding) if corpus.of_vectors else ""
        return row["probe"], row["run_id"], row["fingerprint"] + of_vectors
    if corpus.of_clustering:
        row = corpus.clustering
        corpus.catalog.warn_if_out_of_date("clustering", row["clustering"])
        return row["clustering"], row["run_id"], row["fingerprint"] + corpus.catalog.embedding_fingerprint(corpus.embedding)
    if corpus.of_vectors or "labels" in corpus.inputs:
        row = corpus.catalog.require("embedding", corpus.embedding)
        return corpus.embedding, row["run_id"], corpus.catalog.embedding_fingerprint(corpus.embedding)
    with corpus.catalog.reading() as connection:
        shards = connection.execute("select shard_id, fingerprint from shards where num_samples > 0 order by 1").fetchall()
    return None, None, str(shards)


def _map(corpus: Corpus, of_corpus: dict[str, Any], folder: Path, resources: Resources) -> list[Path]:
    """Score every shard; the files with the scores, in the order of the ids."""
    arrays = {name: value for name, value in of_corpus.items() if isinstance(value, np.ndarray)}
    shared = {name: folder / "shared" / f"{name}.npy" for name in arrays}
    for name, path in shared.items():
        with replacing(path) as temporary:
            np.save(temporary, arrays[name])
    options = {name: value for name, value in of_corpus.items() if name not in arrays}
    distance = corpus.distance if corpus.of_vectors else "cosine"
    task = ScoreShard(corpus.metric, options, distance, tuple(shared.values()), folder, corpus.halves)
    with corpus.catalog.reading() as connection:
        (total,) = connection.execute("select count(*) from samples").fetchone() or (0,)
    files = []
    with bar("score", total) as advance:
        for outcome in engine.map(task, corpus.shards(), resources, advance=advance):
            if outcome.error:
                raise CurateError(f"cannot score sample {outcome.item.sample_ids[0]} and those after it: {outcome.error}")
            files.append(folder / outcome.result)
    return sorted(files)


def _commit(catalog: Catalog, row: dict[str, Any], scored: list[Path], halves: bool) -> None:
    with storage.local(scored) as written, catalog.writing() as connection:
        files = {"files": list(map(str, written))}
        sets.check_column(connection, "scoring", row["scoring"])
        ((count, null),) = connection.execute(
            "select count(*), count(*) - count(score) from read_parquet($files, hive_partitioning = false)", files
        ).fetchall()
        reliability = None
        if halves:
            ((reliability,),) = connection.execute(resources.sql("stages/reliability"), files).fetchall()
        sets.replace(connection, "scoring", "scores", {
            **row, "num_samples": count, "num_null": null, "reliability": reliability,
        })  # fmt: skip
        connection.execute(
            "insert into scores select $name, sample_id, score, standard_error "
            "from read_parquet($files, hive_partitioning = false)",
            {"name": row["scoring"], **files},
        )
        sets.refresh_sample_scores(connection)


def _summarize(catalog: Catalog, name: str, *, replaced: bool) -> None:
    with catalog.reading() as connection:
        row = sets.head(connection, "scoring", name) or {}
        ((error,),) = connection.execute("select median(standard_error) from scores where scoring = ?", [name]).fetchall()
    told = [f"{row['num_samples']:,} samples"]
    told += [f"{row['num_null']:,} could not be scored (NULL)"] if row["num_null"] else []
    told += [f"standard error {error:.3f} (median)"] if error is not None else []
    told += [f"reliability {row['reliability']:.2f}"] if row["reliability"] is not None else []
    log.info("scoring '%s'%s: %s", name, " replaced" if replaced else "", ", ".join(told))
    if row["reliability"] is not None and row["reliability"] < RELIABLE:
        log.warning("two halves of the probe rank by '%s' alike only to %.2f (below %.1f): train more models (--count), "
                    "or take such scores as noise", name, row["reliability"], RELIABLE)  # fmt: skip
