"""`curate score`: run a metric over the corpus, shard by shard, and put the scores into the catalog."""

import functools
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curate import engine, provenance, vectors
from curate.catalog import Catalog, check_name, refresh_sample_scores, replace_set
from curate.engine import kmeans
from curate.errors import CurateError
from curate.metrics import metrics as registry
from curate.progress import bar, log
from curate.shards import natural

_BLOCK = 4096  # samples a call of the metric, so that [block, k] stays small for any size of shard


def score(
    catalog: Catalog | str | Path,
    metrics: list[str] | str,
    *,
    embedding: str | None = None,
    clustering: str | None = None,
    distance: str | None = None,
    seed: int = 0,
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
    functions = {metric: registry[metric] for metric in chosen}
    catalog = Catalog(catalog)
    return [
        _score_one(Corpus(catalog, embedding, clustering, distance, seed), metric, function, check_name(name or metric))
        for metric, function in functions.items()
    ]


@dataclass
class Corpus:
    """What holds for all shards; each property is loaded when a metric first asks for it."""

    catalog: Catalog
    embedding_option: str | None
    clustering_option: str | None
    distance_option: str | None
    seed: int

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
        return str(self.catalog.require("embedding", self.embedding_option)["embedding"])

    @functools.cached_property
    def centroids(self) -> np.ndarray:
        path = self.catalog.centroid_file(self.clustering["clustering"])
        if not path.is_file():
            raise CurateError(f"the centroids '{path}' are gone: make them again with `curate cluster`")
        return np.asarray(np.load(path, allow_pickle=False))

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        with self.catalog.reading() as connection:
            rows = connection.execute("select distinct label from samples where label is not null").fetchall()
        if not rows:
            raise CurateError("the corpus has no labels: choose a metric that needs none, or embed with --label json:FIELD")
        return {label: code for code, label in enumerate(sorted((label for (label,) in rows), key=natural))}

    @functools.cached_property
    def class_means(self) -> np.ndarray:
        """The mean row of each class, of length 1 for cosine: float32 [classes, d], summed in float64."""
        sums, counts = None, np.zeros(len(self.classes))
        for shard_id in shard_ids(self.catalog):
            block = Block(self, *_rows(self.catalog, shard_id))
            if not block.has_vectors:
                continue
            known = block.labels >= 0
            sums = np.zeros((len(self.classes), block.vectors.shape[1])) if sums is None else sums
            np.add.at(sums, block.labels[known], block.vectors[known].astype(np.float64))
            counts += np.bincount(block.labels[known], minlength=len(self.classes))
        if sums is None:
            raise CurateError(f"the embedding '{self.embedding}' is empty: look at `curate query failures`")
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return kmeans.prepared(means, self.distance)

    @property
    def distance(self) -> str:
        return str(self.clustering["distance"]) if "clustering" in vars(self) else self.distance_option or "cosine"


@dataclass
class Block:
    """The samples of one shard (or some of them), and what the corpus knows of them."""

    corpus: Corpus
    shard_id: int
    sample_ids: np.ndarray
    label_texts: np.ndarray

    @functools.cached_property
    def part(self) -> vectors.Part:
        return vectors.read(self.corpus.catalog.vector_file(self.corpus.embedding, self.shard_id))

    @property
    def has_vectors(self) -> bool:
        return self.corpus.catalog.vector_file(self.corpus.embedding, self.shard_id).is_file()

    def with_vectors(self) -> "Block":
        """Only the samples that have a vector in the embedding, which may lack some that another has."""
        found = np.isin(self.sample_ids, self.part.sample_ids) if self.has_vectors else np.zeros(len(self.sample_ids), bool)
        return Block(self.corpus, self.shard_id, self.sample_ids[found], self.label_texts[found])

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        places = np.searchsorted(self.part.sample_ids, self.sample_ids)
        return kmeans.prepared(self.part.vectors[places], self.corpus.distance)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        codes = self.corpus.classes
        return np.array([codes.get(label, -1) for label in self.label_texts], np.int64)


# The one table from a metric's parameter to what it gets. Of the corpus: loaded once; of the block: sliced.
_OF_CORPUS: dict[str, Callable[[Corpus], Any]] = {
    "centroids": lambda corpus: corpus.centroids,
    "class_means": lambda corpus: corpus.class_means,
    "distance": lambda corpus: corpus.distance,
    "seed": lambda corpus: corpus.seed,
}
_OF_BLOCK: dict[str, Callable[[Block], np.ndarray]] = {
    "vectors": lambda block: block.vectors,
    "labels": lambda block: block.labels,
    "sample_ids": lambda block: block.sample_ids,
}


def _score_one(corpus: Corpus, metric: str, function: Callable[..., np.ndarray], name: str) -> str:
    catalog, inputs = corpus.catalog, list(inspect.signature(function).parameters)
    unknown = [name for name in inputs if name not in _OF_CORPUS | _OF_BLOCK]
    if unknown:
        known = ", ".join(sorted(_OF_CORPUS | _OF_BLOCK))
        raise CurateError(f"the metric '{metric}' asks for '{unknown[0]}', which is no input; there are: {known}")
    source, parent = _source(corpus, inputs)
    arguments: dict[str, Any] = {option: getattr(corpus, option) for option in ("distance", "seed") if option in inputs}
    fingerprint = provenance.fingerprint("score", {"metric": metric, **arguments}, parent)
    old = catalog.head("scoring", name)
    if old and old["fingerprint"] == fingerprint:
        log.info("nothing to do: '%s' is this scoring already (%s samples)", name, f"{old['num_samples']:,}")
        return name
    of_corpus = {key: _OF_CORPUS[key](corpus) for key in inputs if key in _OF_CORPUS}
    with (
        catalog.run("score", {"metric": metric, "name": name, "source": source, **arguments}) as run_id,
        tempfile.TemporaryDirectory(prefix=".tmp-", dir=catalog.path) as folder,
    ):
        _score_shards(corpus, function, inputs, of_corpus, Path(folder))
        row = {"scoring": name, "metric": metric, "source": source, "arguments": provenance.canonical(arguments),
               "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        count, null = _commit(catalog, row, Path(folder))
    without = f", {null:,} could not be scored (NULL)" if null else ""
    log.info("scoring '%s': %s samples%s", name, f"{count:,}", without)
    return name


def _source(corpus: Corpus, inputs: list[str]) -> tuple[str | None, str]:
    """The set that a scoring is made from, and its fingerprint."""
    if "centroids" in inputs:
        row = corpus.clustering
        corpus.embedding_option = row["embedding"]
        return row["clustering"], row["fingerprint"] + corpus.catalog.embedding_fingerprint(row["embedding"])
    if {"vectors", "class_means", "labels"} & set(inputs):
        if corpus.distance not in kmeans.DISTANCES:
            raise CurateError(f"no distance called '{corpus.distance}'; there are: {', '.join(kmeans.DISTANCES)}")
        return corpus.embedding, corpus.catalog.embedding_fingerprint(corpus.embedding)
    with corpus.catalog.reading() as connection:
        shards = connection.execute("select shard_id, fingerprint from shards where num_samples > 0 order by 1").fetchall()
    return None, str(shards)


def shard_ids(catalog: Catalog) -> list[int]:
    """The shards that have been read, in order."""
    with catalog.reading() as connection:
        rows = connection.execute("select shard_id from shards where num_samples > 0 order by shard_id").fetchall()
    if not rows:
        raise CurateError("the catalog has no samples yet: bring them in with `curate embed SHARDS`")
    return [shard_id for (shard_id,) in rows]


def _rows(catalog: Catalog, shard_id: int) -> tuple[int, np.ndarray, np.ndarray]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select sample_id, label from samples where shard_id = ? order by sample_id", [shard_id]
        ).fetchnumpy()
    return shard_id, np.asarray(rows["sample_id"], np.int64), np.ma.filled(np.ma.asarray(rows["label"]).astype(object), None)


def _score_shards(
    corpus: Corpus, function: Callable[..., np.ndarray], inputs: list[str], of_corpus: dict[str, Any], folder: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def task(shard_id: int) -> None:
        whole = Block(corpus, *_rows(corpus.catalog, shard_id))
        block = whole.with_vectors() if "vectors" in inputs else whole
        of_block = {key: _OF_BLOCK[key](block) for key in inputs if key in _OF_BLOCK} if len(block.sample_ids) else {}
        scores = np.full(len(whole.sample_ids), np.nan)
        found = np.empty(len(block.sample_ids))
        for start in range(0, len(found), _BLOCK):
            piece = {key: value[start : start + _BLOCK] for key, value in of_block.items()}
            found[start : start + _BLOCK] = function(**piece, **of_corpus)
        scores[np.isin(whole.sample_ids, block.sample_ids)] = found
        table = pa.table({"sample_id": whole.sample_ids, "score": pa.array(scores, mask=~np.isfinite(scores))})
        pq.write_table(table, folder / f"{shard_id:08d}.parquet")
        engine.tick(len(scores))

    ids = shard_ids(corpus.catalog)
    with bar("score", 0, "samples") as advance:
        for outcome in engine.map(task, ids, advance=advance):
            if outcome.error:
                raise CurateError(f"cannot score shard {outcome.item}: {outcome.error}")


def _commit(catalog: Catalog, row: dict[str, Any], folder: Path) -> tuple[int, int]:
    files = f"{folder}/*.parquet"
    with catalog.writing() as connection:
        counts = connection.execute(
            "select count(*), count(*) - count(score) from read_parquet($files)", {"files": files}
        ).fetchone()
        count, null = counts or (0, 0)
        replace_set(connection, "scoring", "scores", {**row, "num_samples": count, "num_null": null})
        connection.execute(
            "insert into scores select $name, sample_id, score from read_parquet($files) order by sample_id",
            {"name": row["scoring"], "files": files},
        )
        refresh_sample_scores(connection)
    return int(count), int(null)
