"""`curate score`: run a metric over the corpus, shard by shard, and put the scores into the catalog."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curate import distances, engine, provenance, sets
from curate.catalog import Catalog
from curate.engine import Resources
from curate.engine.scoring import OF_SHARD, ScoreShard, Shard, SumClasses
from curate.errors import CurateError
from curate.metrics import metrics as registry
from curate.progress import bar, log
from curate.shards import natural

_SHARDS_A_READ = 64


def score(
    catalog: Catalog | str | Path,
    metrics: list[str] | str,
    *,
    embedding: str | None = None,
    clustering: str | None = None,
    distance: str | None = None,
    seed: int = 0,
    workers: int = 1,
    name: str | None = None,
) -> list[str]:
    """Score every sample by each metric, and return the scorings' names (the metrics', unless `name` is given).

    `distance` is cosine (default) or euclidean; for metrics on a clustering it is the clustering's own.
    A sample that a metric cannot score gets NULL. Raises CurateError that names the command which makes
    a missing input.
    """
    chosen = [metrics] if isinstance(metrics, str) else list(metrics)
    if name and len(chosen) != 1:
        raise CurateError("--name goes with one metric: score the others in calls of their own")
    check(chosen)
    catalog = Catalog(catalog)
    for kind, option in (("embedding", embedding), ("clustering", clustering)):
        if option is not None:
            catalog.require(kind, option)
    for metric in chosen:
        catalog.check_column("scoring", name or metric)
    return [
        _score_one(Corpus(catalog, metric, embedding, clustering, distance, seed), name or metric, workers) for metric in chosen
    ]


@dataclass
class Corpus:
    """What a metric may ask of the whole corpus; each property is loaded when it is first asked for."""

    catalog: Catalog
    metric: str
    embedding_option: str | None
    clustering_option: str | None
    distance_option: str | None
    seed: int

    @property
    def inputs(self) -> list[str]:
        return list(inspect.signature(registry[self.metric]).parameters)

    @property
    def of_clustering(self) -> bool:
        return "centroids" in self.inputs

    @property
    def of_vectors(self) -> bool:
        return bool({"vectors", "class_means", "centroids"} & set(self.inputs))

    @functools.cached_property
    def clustering(self) -> dict[str, Any]:
        row = self.catalog.require("clustering", self.clustering_option)
        if self.distance_option not in (None, row["distance"]):
            raise CurateError(
                f"the clustering '{row['clustering']}' is {row['distance']}: "
                f"make another with `curate cluster --distance {self.distance_option} --name NAME`"
            )
        return row

    @functools.cached_property
    def embedding(self) -> str:
        name = self.clustering["embedding"] if self.of_clustering else self.embedding_option
        if self.embedding_option not in (None, name):
            raise CurateError(
                f"the clustering '{self.clustering['clustering']}' is of the embedding '{name}': drop --embedding"
            )
        return str(self.catalog.require("embedding", name)["embedding"])

    @functools.cached_property
    def distance(self) -> str:
        return distances.check(str(self.clustering["distance"]) if self.of_clustering else self.distance_option or "cosine")

    @functools.cached_property
    def centroids(self) -> np.ndarray:
        path = self.catalog.centroid_file(self.clustering)
        if not path.is_file():
            raise CurateError(f"the centroids '{path}' are gone: make them again with `curate cluster`")
        return np.asarray(np.load(path, allow_pickle=False))

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        """The classes in their natural order, each with its place."""
        with self.catalog.reading() as connection:
            rows = connection.execute("select distinct label from samples where label is not null").fetchall()
        if not rows:
            raise CurateError("the corpus has no labels: choose a metric that needs none, or embed with --label json:FIELD")
        return {label: code for code, label in enumerate(sorted((label for (label,) in rows), key=natural))}

    @functools.cached_property
    def class_means(self) -> np.ndarray:
        """The mean row of each class, of length 1 for cosine: float32 [classes, d], summed in float64."""
        sums: np.ndarray | None = None
        counts = np.zeros(len(self.classes))
        for outcome in engine.map(SumClasses(len(self.classes), self.distance), self.shards()):
            if outcome.error:
                raise CurateError(f"cannot read the vectors: {outcome.error}")
            if outcome.result:
                sums = outcome.result[0] if sums is None else sums + outcome.result[0]
                counts += outcome.result[1]
        if sums is None:
            raise CurateError(f"no labelled sample in the embedding '{self.embedding}': look at `curate query shards`")
        return distances.prepared((sums / np.maximum(counts, 1)[:, None]).astype(np.float32), self.distance)

    def shards(self) -> Iterator[Shard]:
        """Every shard that has been read, in order, with what the catalog knows of its samples."""
        with self.catalog.reading() as connection:
            ids = connection.execute("select shard_id from shards where num_samples > 0 order by shard_id").fetchnumpy()
        known = np.asarray(ids["shard_id"], np.int64)
        if not len(known):
            raise CurateError("the catalog has no samples yet: bring them in with `curate embed SHARDS`")
        for start in range(0, len(known), _SHARDS_A_READ):
            yield from self._read(known[start], known[start : start + _SHARDS_A_READ][-1])

    def _read(self, first: int, last: int) -> Iterator[Shard]:
        with self.catalog.reading() as connection:
            rows = connection.execute(
                "select sample_id, shard_id, label from samples where shard_id between ? and ? order by sample_id",
                [int(first), int(last)],
            ).fetchnumpy()
        ids, shard_ids = np.asarray(rows["sample_id"], np.int64), np.asarray(rows["shard_id"], np.int64)
        labels = self._codes(rows["label"]) if {"labels", "class_means"} & set(self.inputs) else np.full(len(ids), -1)
        for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(shard_ids)) + 1):
            if len(part):
                yield Shard(ids[part], labels[part], self._vector_files.get(int(shard_ids[part[0]])))

    def _codes(self, labels: np.ndarray) -> np.ndarray:
        """Labels as places in `classes`: text [n] -> int64 [n], −1 where there is none."""
        texts, places = np.unique(np.ma.filled(np.ma.asarray(labels).astype(object), ""), return_inverse=True)
        return np.array([self.classes.get(text, -1) for text in texts], np.int64)[places]

    @functools.cached_property
    def _vector_files(self) -> dict[int, Path]:
        if not self.of_vectors:
            return {}
        return {int(file.stem): file for file in self.catalog.vector_files(self.embedding)}


# What a metric may ask for, by the parameter's name: of the whole corpus (here), and of the shard at hand (engine/scoring.py).
_OF_CORPUS: dict[str, Callable[[Corpus], Any]] = {
    "centroids": lambda corpus: corpus.centroids,
    "class_means": lambda corpus: corpus.class_means,
    "distance": lambda corpus: corpus.distance,
    "seed": lambda corpus: corpus.seed,
}


def check(metrics: list[str] | str, **others: Any) -> None:
    """CurateError for a metric that there is none of, or that asks for what is no input."""
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        for name in inspect.signature(registry[metric]).parameters:
            if name not in _OF_CORPUS | OF_SHARD:
                known = ", ".join(sorted(_OF_CORPUS | OF_SHARD))
                raise CurateError(f"the metric '{metric}' asks for '{name}', which is no input; there are: {known}")


def _score_one(corpus: Corpus, name: str, workers: int) -> str:
    catalog, metric = corpus.catalog, corpus.metric
    source, made_from, content = _source(corpus)
    arguments: dict[str, Any] = {"metric": metric}
    if corpus.of_vectors:
        arguments["distance"] = corpus.distance
    if "seed" in corpus.inputs:
        arguments["seed"] = corpus.seed
    fingerprint = provenance.fingerprint("score", arguments, content, provenance.source(registry[metric]))
    old = catalog.head("scoring", name)
    if old and old["fingerprint"] == fingerprint:
        log.info("nothing to do: '%s' is this scoring already (%s samples)", name, f"{old['num_samples']:,}")
        return name
    of_corpus = {key: _OF_CORPUS[key](corpus) for key in corpus.inputs if key in _OF_CORPUS}
    with (
        catalog.run("score", name, {**arguments, "source": source}, made_from=made_from, fingerprint=fingerprint) as run_id,
        catalog.workspace() as folder,
    ):
        _map(corpus, of_corpus, folder, Resources(workers))
        row = {"scoring": name, "metric": metric, "source": source, "arguments": provenance.canonical(arguments),
               "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        count, null = _commit(catalog, row, folder)
    without = f", {null:,} could not be scored (NULL)" if null else ""
    log.info("scoring '%s'%s: %s samples%s", name, " replaced" if old else "", f"{count:,}", without)
    return name


def _source(corpus: Corpus) -> tuple[str | None, int | None, str]:
    """The set that a scoring is made from, the run that made it, and a text that stands for all that it is made from."""
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


def _map(corpus: Corpus, of_corpus: dict[str, Any], folder: Path, resources: Resources) -> None:
    shared = folder / "shared"
    shared.mkdir()
    for name, value in of_corpus.items():
        if isinstance(value, np.ndarray):
            np.save(shared / f"{name}.npy", value)
    options = {name: value for name, value in of_corpus.items() if not isinstance(value, np.ndarray)}
    distance = corpus.distance if corpus.of_vectors else "cosine"
    task = ScoreShard(corpus.metric, options, distance, shared, folder)
    with corpus.catalog.reading() as connection:
        (total,) = connection.execute("select count(*) from samples").fetchone() or (0,)
    with bar("score", total) as advance:
        for outcome in engine.map(task, corpus.shards(), resources, advance=advance):
            if outcome.error:
                raise CurateError(f"cannot score sample {outcome.item.sample_ids[0]} and those after it: {outcome.error}")


def _commit(catalog: Catalog, row: dict[str, Any], folder: Path) -> tuple[int, int]:
    files = f"{folder}/*.parquet"
    with catalog.writing() as connection:
        sets.check_column(connection, "scoring", row["scoring"])
        counts = connection.execute(
            "select count(*), count(*) - count(score) from read_parquet($files, hive_partitioning = false)", {"files": files}
        ).fetchone()
        count, null = counts or (0, 0)
        sets.replace(connection, "scoring", "scores", {**row, "num_samples": count, "num_null": null})
        connection.execute(
            "insert into scores select $name, sample_id, score from read_parquet($files, hive_partitioning = false) "
            "order by sample_id",
            {"name": row["scoring"], "files": files},
        )
        sets.refresh_sample_scores(connection)
    return int(count), int(null)
