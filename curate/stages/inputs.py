"""What a metric may ask for of a catalog: vectors, centroids, class means, what probes say."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curate import corpus, distances, engine, metrics, probes
from curate.catalog import Catalog
from curate.engine.scoring import PROBED, Shard, SumClasses
from curate.errors import CurateError

_SHARDS_A_READ = 64


@dataclass
class Corpus:
    """What a metric may ask of the whole corpus; each property is loaded when it is first asked for."""

    catalog: Catalog
    metric: str
    embedding_option: str | None
    clustering_option: str | None
    probe_option: str | None
    distance_option: str | None
    seed: int

    @property
    def inputs(self) -> list[str]:
        return list(inspect.signature(metrics.find(self.metric)).parameters)

    @property
    def of_clustering(self) -> bool:
        return "centroids" in self.inputs

    @property
    def of_vectors(self) -> bool:
        return bool({"vectors", "class_means", "centroids"} & set(self.inputs))

    @property
    def of_probe(self) -> bool:
        return bool(set(PROBED) & set(self.inputs))

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
    def probe(self) -> dict[str, Any]:
        """The head row of the probe: the one that is named, or the only one that holds what the metric asks for."""
        if self.probe_option is not None:
            row = self.catalog.require("probe", self.probe_option)
            if not _holds(row, self.inputs):
                raise CurateError(f"the probe '{self.probe_option}' does not hold what '{self.metric}' asks for: "
                                  f"make one with `{_remedy(self.inputs)}`")  # fmt: skip
            return row
        rows = [row for name in self.catalog.names("probe") if _holds(row := self.catalog.require("probe", name), self.inputs)]
        if "correct_by_architecture" not in self.inputs:  # many models of one kind go before one each of many, or one at all
            rows = [row for row in rows if len(row["models"]) == 1 and row["num_models"] > 1] or rows
        if not rows:
            raise CurateError(f"no probe holds what '{self.metric}' asks for: make one with `{_remedy(self.inputs)}`")
        if len(rows) > 1:
            raise CurateError(f"several probes would do, choose one with --probe: {', '.join(row['probe'] for row in rows)}")
        return rows[0]

    @functools.cached_property
    def embedding(self) -> str:
        if self.of_probe and not self.of_vectors:
            return str(self.probe["embedding"])
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
        try:
            with path.open("rb") as file:
                return np.asarray(np.load(file, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise CurateError(f"the centroids '{path}' are gone or damaged: remove them, and `curate cluster` makes them again"
                              ) from error  # fmt: skip

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        """The classes in their natural order, each with its place."""
        return corpus.classes(self.catalog)

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
        labelled = bool({"labels", "class_means"} & set(self.inputs))
        with self.catalog.reading() as connection:
            rows = connection.execute(
                f"select sample_id, shard_id{', label' * labelled} from samples where shard_id between ? and ? "
                "order by sample_id",
                [int(first), int(last)],
            ).fetchnumpy()
        ids, shard_ids = np.asarray(rows["sample_id"], np.int64), np.asarray(rows["shard_id"], np.int64)
        labels = corpus.codes(rows["label"], self.classes) if labelled else np.full(len(ids), -1)
        for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(shard_ids)) + 1):
            if len(part):
                shard_id = int(shard_ids[part[0]])
                probed = tuple(folder / f"{shard_id:08d}.parquet" for folder, has in self._parts.items() if shard_id in has)
                yield Shard(ids[part], labels[part], self._vector_files.get(shard_id), probed)

    @functools.cached_property
    def _vector_files(self) -> dict[int, Path]:
        if not self.of_vectors:
            return {}
        return {int(file.stem): file for file in self.catalog.vector_files(self.embedding)}

    @functools.cached_property
    def _parts(self) -> dict[Path, set[int]]:
        """The parts of the probe, and the shards that each has a file of."""
        if not self.of_probe:
            return {}
        return {part: set(probes.summary(part)["shards"]) for part in self.catalog.probe_parts(self.probe)}

    @property
    def halves(self) -> bool:
        """Whether the probe has models, or test samples, enough for two halves to be compared."""
        if not self.of_probe:
            return False
        architectures = "correct_by_architecture" in self.inputs
        count = len(self.probe["models"]) if architectures else self.probe["num_models"]
        return count > 1 or ("influence" in self.inputs and self.probe["num_test"] > 1)


def _holds(probe: dict[str, Any], inputs: list[str]) -> bool:
    """Whether a probe (its head row) was made so that it has these inputs."""
    if "was_trained_on" in inputs:
        return bool(probe["fraction"] < 1)
    if "influence" in inputs:
        return bool(probe["test"]) and (probe["fraction"] < 1 or probe["models"] == ["ridge"])
    if "correct_by_architecture" in inputs:
        return bool(probe["fraction"] == 1 and len(probe["models"]) > 1)
    if {"history", "margins", "feature_norms"} & set(inputs) and probe["models"] == ["ridge"]:
        return False
    return bool(probe["fraction"] == 1)


def _remedy(inputs: list[str]) -> str:
    """The command that makes such a probe."""
    if "was_trained_on" in inputs:
        return "curate probe --fraction 0.7"
    if "influence" in inputs:
        return "curate probe --model ridge --test SHARDS"
    if "correct_by_architecture" in inputs:
        return "curate probe --model linear --model ridge --model mlp:64 --model mlp"
    return "curate probe"


# What a metric may ask for of the whole corpus, by the parameter's name; of the shard at hand: engine/scoring.py.
OF_CORPUS: dict[str, Callable[[Corpus], Any]] = {
    "centroids": lambda corpus: corpus.centroids,
    "class_means": lambda corpus: corpus.class_means,
    "distance": lambda corpus: corpus.distance,
    "seed": lambda corpus: corpus.seed,
}
