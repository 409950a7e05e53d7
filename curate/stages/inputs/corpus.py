"""What metrics and strategies may ask for of a catalog, by the names of their parameters."""

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.columns import NUMERIC_TYPES, as_identifier, list_columns
from curate.catalog.records import (
    ClusteringRecord,
    ColumnRecord,
    EmbeddingRecord,
    ProbeRecord,
    SelectionRecord,
)
from curate.catalog.samples import class_to_index, encode_labels
from curate.catalog.sql import quote_identifier
from curate.distances import DISTANCES, normalize_rows
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.reporting import no_progress
from curate.formats.centroids import load_centroids
from curate.formats.probe_outputs import read_summary
from curate.formats.sample_ids import shard_filename, shard_id_of, shard_of
from curate.formats.vectors import ShardVectors, sample_rows
from curate.formatting import label_of_pattern
from curate.options import Option
from curate.progress import log
from curate.stages.inputs.blocks import (
    ASSIGNMENT_INPUTS,
    PROBE_COLUMNS,
    SHARD_INPUTS,
    ShardSamples,
    SumClasses,
)
from curate.stages.inputs.references import draw_references
from curate.stages.staleness import warn_if_stale

if TYPE_CHECKING:
    from curate.stages.other_catalog import OtherCatalog

SetWithin = TypeVar("SetWithin", ClusteringRecord, ProbeRecord)

# The options that name what inputs are taken from, for metrics and strategies.
ClusteringName = Annotated[
    str | None, Option("Name of the clustering.", default="required if there are several")
]
ProbeName = Annotated[
    str | None, Option("Name of the probe.", default="the only one with the inputs")
]
DistanceName = Annotated[
    str | None,
    Option("Distance metric.", choices=DISTANCES, default="the clustering's, else cosine"),
]

DEFAULT_DISTANCE = "cosine"

_SHARDS_PER_QUERY = 64
_CLUSTERING_INPUTS = {"centroids", *ASSIGNMENT_INPUTS}
_REFERENCE_INPUTS = {"reference_vectors", "reference_ids"}
_VECTOR_INPUTS = {
    "vectors",
    "caption_vectors",
    "class_means",
    "centroids",
    "target_vectors",
    *_REFERENCE_INPUTS,
}
_GRADIENT_INPUTS = {"gradient_features", "target_gradients"}
_TRAINING_INPUTS = {"history", "margins", "feature_norms"}  # of trained models, not of ridge


class Source(NamedTuple):
    """The set that inputs are made from, the runs of all inputs, and their fingerprints."""

    name: str | None
    parents: list[int]
    content: str


class GivenOption(NamedTuple):
    """An option that was given: its flag and value, and how it shows in the name of the result."""

    flag: str
    value: str
    label: str


@dataclass
class CorpusInputs:
    """What a function may ask of the whole corpus; each property is loaded when it is first used.

    `asker` is what it is called in messages, such as "the metric 'el2n'". Its parameters are inputs
    by their names; those without a default that are no input are columns of samples, and the others
    are its options. The fields `…_option` are those of the verb, None where they were not given.
    """

    catalog: Catalog
    asker: str
    parameters: Mapping[str, inspect.Parameter]
    embedding_option: str | None
    clustering_option: str | None
    probe_option: str | None
    distance_option: str | None
    seed: int
    within_option: str | None
    target_option: list[str] | None = field(default=None, kw_only=True)

    own_inputs: ClassVar[frozenset[str]] = frozenset()  # of a subclass, beside those of the tables

    @property
    def names(self) -> list[str]:
        """The function's parameters."""
        return list(self.parameters)

    @property
    def uses_clustering(self) -> bool:
        return bool(_CLUSTERING_INPUTS & set(self.names))

    @property
    def uses_vectors(self) -> bool:
        return bool(_VECTOR_INPUTS & set(self.names))

    @property
    def uses_captions(self) -> bool:
        return "caption_vectors" in self.names

    @property
    def uses_target(self) -> bool:
        return "target_vectors" in self.names

    @property
    def uses_seed(self) -> bool:
        return bool({"seed", *_REFERENCE_INPUTS} & set(self.names))

    @property
    def uses_probe(self) -> bool:
        return bool(set(PROBE_COLUMNS) & set(self.names))

    @property
    def column_names(self) -> list[str]:
        """The parameters that are no input and have no default: columns of samples."""
        inputs = self.own_inputs.union(CORPUS_INPUTS, SHARD_INPUTS)
        return [
            name
            for name, parameter in self.parameters.items()
            if parameter.default is parameter.empty and name not in inputs
        ]

    @property
    def option_defaults(self) -> dict[str, Any]:
        """The options of the function itself: its parameters that are no inputs, with defaults."""
        return list_options(self.parameters, self.own_inputs)

    def parse_options(self, values: Mapping[str, str]) -> dict[str, Any]:
        """The function's options with the given values, each of its default's type.

        The type of a default None is float. OptionError for a value that is none of that type.
        """
        options = self.option_defaults
        for name in options.keys() & values.keys():
            kind = float if options[name] is None else type(options[name])
            try:
                options[name] = kind(values[name])
            except ValueError as error:
                raise OptionError(f"--option {name}={values[name]}: {error}") from error
        return options

    def given_options(self, values: Mapping[str, str]) -> list[GivenOption]:
        """The options that the function uses, which were given and are not the defaults."""
        defaults = self.option_defaults
        options = [
            GivenOption("--option", f"{name}={value}", f"{name}={value}")
            for name, value in self.parse_options(values).items()
            if value != defaults[name]
        ]
        has_own_distance = self.uses_vectors and not self.uses_clustering
        distance = self.distance_option if self.distance_option != DEFAULT_DISTANCE else None
        sources = [
            ("--embedding", self.embedding_option, has_own_distance),
            ("--clustering", self.clustering_option, self.uses_clustering),
            ("--probe", self.probe_option, self.uses_probe),
            ("--distance", distance, has_own_distance),
        ]
        options += [
            GivenOption(flag, value, value) for flag, value, is_used in sources if value and is_used
        ]
        if self.uses_target:
            # The first names the set; all of them are in the command.
            for index, pattern in enumerate(self.target_option or []):
                label = "" if index else label_of_pattern(pattern)
                options.append(GivenOption("--target", pattern, label))
        if self.seed and self.uses_seed:
            options.append(GivenOption("--seed", str(self.seed), f"seed{self.seed}"))
        if self.within_option:
            options.append(GivenOption("--within", self.within_option, f"in-{self.within_option}"))
        return options

    @functools.cached_property
    def columns(self) -> dict[str, ColumnRecord]:
        """The columns of samples that are asked for, by the parameters.

        Raises CurateError for a parameter that is no column. A column called a.b.c is a_b_c.
        """
        names = self.column_names
        if not names:
            return {}
        with self.catalog.reading() as connection:
            records = list_columns(connection)
        by_name = {as_identifier(record.column_name): record for record in reversed(records)}
        by_name |= {record.column_name: record for record in records}
        for name in names:
            if name not in by_name:
                inputs = {*self.own_inputs, *CORPUS_INPUTS, *SHARD_INPUTS, *by_name}
                raise OptionError(
                    f"{self.asker} asks for '{name}', which is no input and no "
                    f"column of this catalog; there are: {', '.join(sorted(inputs))}"
                )
        return {name: by_name[name] for name in names}

    @functools.cached_property
    def within(self) -> SelectionRecord | None:
        """The selection that is all of the corpus."""
        if self.within_option is None:
            return None
        return self.catalog.require(SelectionRecord, self.within_option)

    def _made_within(self, record_type: type[SetWithin]) -> list[SetWithin]:
        """The sets made within the same selection.

        Of the whole corpus where there is none; and then, if there are no such sets, all.
        """
        records = [
            self.catalog.require(record_type, name) for name in self.catalog.list_names(record_type)
        ]
        same = [
            record
            for record in records
            if self.catalog.run_arguments(record.run_id).get("within") == self.within_option
        ]
        return same if same or self.within_option else records

    @functools.cached_property
    def clustering(self) -> ClusteringRecord:
        """The named clustering, or the only one of the same corpus."""
        name = self.clustering_option
        if name is None:
            candidates = self._made_within(ClusteringRecord)
            if self.within_option and not candidates:
                raise CurateError(
                    f"no clustering within '{self.within_option}': "
                    f"make one with `curate cluster --within {self.within_option}`"
                )
            name = candidates[0].clustering if len(candidates) == 1 else None
        record = self.catalog.require(ClusteringRecord, name)
        if self.distance_option not in (None, record.distance):
            raise OptionError(
                f"the clustering '{record.clustering}' is {record.distance}: make another with "
                f"`curate cluster --distance {self.distance_option} --name NAME`"
            )
        return record

    @functools.cached_property
    def probe(self) -> ProbeRecord:
        """The named probe, or the only one of the same corpus with what is asked for."""
        names = self.names
        command = _probe_command(names, self.within_option)
        if self.probe_option is not None:
            record = self.catalog.require(ProbeRecord, self.probe_option)
            if not self._provides(record):
                raise CurateError(
                    f"the probe '{self.probe_option}' does not hold what {self.asker} asks for: "
                    f"make one with `{command}`"
                )
            return record
        candidates = [probe for probe in self._made_within(ProbeRecord) if self._provides(probe)]
        # Many models of one kind are better than one each of many, or one at all.
        # Influence has two estimates, which are not of one kind.
        if not {"correct_by_architecture", "influence"} & set(names):
            many_of_one = [
                probe for probe in candidates if len(probe.models) == 1 and probe.num_models > 1
            ]
            candidates = many_of_one or candidates
        if "correct_by_architecture" in names:
            candidates = list(filter(self._has_folds, candidates)) or candidates
        if not candidates:
            corpus = f" within '{self.within_option}'" if self.within_option else ""
            raise CurateError(
                f"no probe{corpus} holds what {self.asker} asks for: make one with `{command}`"
            )
        if len(candidates) > 1:
            names_text = ", ".join(probe.probe for probe in candidates)
            raise CurateError(f"several probes would do, choose one with --probe: {names_text}")
        return candidates[0]

    def _has_folds(self, probe: ProbeRecord) -> bool:
        """Whether each sample was left out by some model of every kind."""
        return bool(self.catalog.run_arguments(probe.run_id).get("folds"))

    def _provides(self, probe: ProbeRecord) -> bool:
        """Whether a probe was made so that it has what is asked for."""
        names = self.names
        is_ridge, has_folds = probe.models == ["ridge"], self._has_folds(probe)
        if "correct_by_architecture" in names:
            return len(probe.models) > 1 and (has_folds or probe.fraction == 1)
        if has_folds:
            return False
        if "contributions" in names:
            return probe.num_test > 0 and probe.fraction == 1 and not is_ridge
        if _GRADIENT_INPUTS & set(names):
            return bool(self.catalog.run_arguments(probe.run_id).get("gradients"))
        if "was_trained_on" in names:
            return probe.fraction < 1
        if "influence" in names:
            return probe.num_test > 0 and (probe.fraction < 1 or is_ridge)
        if _TRAINING_INPUTS & set(names) and is_ridge:
            return False
        return probe.fraction == 1

    @functools.cached_property
    def embedding(self) -> str:
        if self.uses_probe and not self.uses_vectors:
            return self.probe.embedding
        name = self.clustering.embedding if self.uses_clustering else self.embedding_option
        if self.embedding_option not in (None, name):
            raise OptionError(
                f"the clustering '{self.clustering.clustering}' is of the embedding '{name}': "
                "leave out --embedding"
            )
        return self.catalog.require(EmbeddingRecord, name).embedding

    @functools.cached_property
    def distance(self) -> str:
        if self.uses_clustering:
            return self.clustering.distance
        return self.distance_option or DEFAULT_DISTANCE

    @functools.cached_property
    def centroids(self) -> np.ndarray:
        return load_centroids(self.catalog.centroids_file(self.clustering))

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        """The classes in natural order, each with its number."""
        return class_to_index(self.catalog)

    @functools.cached_property
    def class_means(self) -> np.ndarray:
        """The mean row of each class, of length 1 for cosine: float32 [classes, d], via float64."""
        sums: np.ndarray | None = None
        counts = np.zeros(len(self.classes))
        task = SumClasses(len(self.classes), self.distance)
        for _, class_sums in engine.map_or_raise(
            task,
            self.shards(),
            describe_item=lambda shard: "cannot read the vectors",
            in_order=True,  # of the sums
        ):
            if class_sums:
                sums = class_sums.sums if sums is None else sums + class_sums.sums
                counts += class_sums.counts
        if sums is None:
            raise CurateError(
                f"no labelled sample in the embedding '{self.embedding}': "
                "look at `curate query shards`"
            )
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return normalize_rows(means, self.distance)

    @functools.cached_property
    def references(self) -> ShardVectors:
        """Samples to compare all with: those that are looked at, or so many at random of these."""
        shards = (
            (shard.sample_ids[shard.is_included], shard.vector_file) for shard in self.shards()
        )
        return draw_references(shards, self.seed, self.distance)

    @functools.cached_property
    def target(self) -> "OtherCatalog":
        """The target set, which is embedded if it is not yet. Raises CurateError."""
        from curate.stages.other_catalog import open_other

        if not self.target_option:
            raise OptionError(
                f"{self.asker} compares with a target set: name it with --target SHARDS|CATALOG"
            )
        parent = self.catalog.require(EmbeddingRecord, self.embedding)
        return open_other(self.catalog, parent, self.target_option, "--target")

    @functools.cached_property
    def target_vectors(self) -> np.ndarray:
        """The vectors of the target set, float32 [t, d], of length 1 for cosine."""
        target = self.target
        files = target.catalog.vector_files(target.embedding)
        if target.urls is not None:
            shard_ids = set(shard_of(target.sample_ids).tolist())
            files = {file: count for file, count in files.items() if shard_id_of(file) in shard_ids}
        return sample_rows(
            files,
            sum(files.values()),
            self.seed,
            no_progress,
            lambda rows: normalize_rows(rows, self.distance),
        )

    def check_captions(self) -> None:
        """Say how many samples have no caption. Raises CurateError where there are no vectors."""
        num_captions = sum(self.catalog.caption_files(self.embedding).values())
        num_samples = sum(self.catalog.vector_files(self.embedding).values())
        if not num_captions:
            parent = self.catalog.require(EmbeddingRecord, self.embedding)
            if json.loads(parent.preprocessing).get("captions"):
                raise CurateError(f"no sample of the embedding '{self.embedding}' has a caption")
            raise CurateError(
                f"the embedding '{self.embedding}' has no vectors of captions: make one with "
                "`curate embed SHARDS --captions --name NAME`"
            )
        if num_captions < num_samples:
            log.warning(
                "%s of %s samples have no caption, and get no score",
                f"{num_samples - num_captions:,}",
                f"{num_samples:,}",
            )

    def shards(self, only: list[int] | None = None) -> Iterator[ShardSamples]:
        """Every shard that has been read, in order, with what the catalog knows of its samples.

        With `only`, those of these ids.
        """
        with self.catalog.reading() as connection:
            rows = connection.execute(
                "select shard_id from shards where num_samples > 0 order by shard_id"
            ).fetchnumpy()
        shard_ids = np.asarray(rows["shard_id"], np.int64)
        if not len(shard_ids):
            raise CurateError(
                "the catalog has no samples yet: bring them in with `curate embed SHARDS`"
            )
        if only is None:
            neighbours = [shard_ids]
        else:  # no query reads what lies between them
            shard_ids = shard_ids[np.isin(shard_ids, only)]
            neighbours = np.split(shard_ids, np.flatnonzero(np.diff(shard_ids) > 1) + 1)
        for run in neighbours:
            for start in range(0, len(run), _SHARDS_PER_QUERY):
                chunk = run[start : start + _SHARDS_PER_QUERY]
                yield from self._read_shards(int(chunk[0]), int(chunk[-1]))

    def _read_shards(self, first_id: int, last_id: int) -> Iterator[ShardSamples]:
        needs_labels = bool({"labels", "class_means"} & set(self.names))
        columns = "sample_id, shard_id, label" if needs_labels else "sample_id, shard_id"
        with self.catalog.reading() as connection:
            rows = connection.execute(
                f"select {columns} from samples where shard_id between ? and ? order by sample_id",
                [first_id, last_id],
            ).fetchnumpy()
        sample_ids = np.asarray(rows["sample_id"], np.int64)
        shard_ids = np.asarray(rows["shard_id"], np.int64)
        if needs_labels:
            labels = encode_labels(rows["label"], self.classes)
        else:
            labels = np.full(len(sample_ids), -1)
        is_included = self._are_within(sample_ids)
        extra_columns = {
            name: self._load_column(record, sample_ids) for name, record in self.columns.items()
        }
        extra_columns |= self._load_assignments(sample_ids)
        bounds = np.flatnonzero(np.diff(shard_ids)) + 1
        for row_indices in np.split(np.arange(len(sample_ids)), bounds):
            if len(row_indices):
                shard_id = int(shard_ids[row_indices[0]])
                yield ShardSamples(
                    sample_ids[row_indices],
                    labels[row_indices],
                    is_included[row_indices],
                    self._vector_files.get(shard_id),
                    self._probe_files(shard_id),
                    tuple((name, values[row_indices]) for name, values in extra_columns.items()),
                    self._caption_files.get(shard_id),
                )

    def _load_column(self, record: ColumnRecord, sample_ids: np.ndarray) -> np.ndarray:
        """A column of samples, for sorted ids [n].

        Numbers and truth values are float64, NaN where a sample has none; others are objects, str
        or None.
        """
        is_number = record.type in (*NUMERIC_TYPES, "bool")
        sql_type = "double" if is_number else "text"
        name = quote_identifier(record.column_name)
        with self.catalog.reading() as connection:
            rows = connection.execute(
                f"select sample_id, {name}::{sql_type} as value from sample_columns "
                f"where sample_id between ? and ? and {name} is not null",
                [int(sample_ids[0]), int(sample_ids[-1])],
            ).fetchnumpy()
        values: np.ndarray = np.full(len(sample_ids), None, object)
        if is_number:
            values = np.full(len(sample_ids), np.nan)
        values[np.searchsorted(sample_ids, rows["sample_id"])] = np.ma.getdata(rows["value"])
        return values

    def _load_assignments(self, sample_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Those asked for of clusters, int64 [n], −1 for none, and distances, NaN for none."""
        names = [name for name in ASSIGNMENT_INPUTS if name in self.names]
        if not names:
            return {}
        with self.catalog.reading() as connection:
            rows = connection.execute(
                "select sample_id, cluster_id as clusters, distance::double as distances "
                "from assignments where clustering = ? and sample_id between ? and ?",
                [self.clustering.clustering, int(sample_ids[0]), int(sample_ids[-1])],
            ).fetchnumpy()
        index = np.searchsorted(sample_ids, rows["sample_id"])
        assigned = {
            "clusters": np.full(len(sample_ids), -1),
            "distances": np.full(len(sample_ids), np.nan),
        }
        for name in names:
            assigned[name][index] = rows[name]
        return {name: assigned[name] for name in names}

    def _are_within(self, sample_ids: np.ndarray) -> np.ndarray:
        """Which sorted ids are of the corpus that is looked at: [n] -> bool [n]."""
        if self.within is None:
            return np.ones(len(sample_ids), bool)
        with self.catalog.reading() as connection:
            rows = connection.execute(
                "select sample_id from members where selection = ? and sample_id between ? and ?",
                [self.within.selection, int(sample_ids[0]), int(sample_ids[-1])],
            ).fetchnumpy()
        return np.isin(sample_ids, rows["sample_id"])

    @functools.cached_property
    def _vector_files(self) -> dict[int, str]:
        if not self.uses_vectors:
            return {}
        return {shard_id_of(file): file for file in self.catalog.vector_files(self.embedding)}

    @functools.cached_property
    def _caption_files(self) -> dict[int, str]:
        if not self.uses_captions:
            return {}
        return {shard_id_of(file): file for file in self.catalog.caption_files(self.embedding)}

    def _probe_files(self, shard_id: int) -> tuple[Path, ...]:
        """The probe's files of a shard, one for each part that has it."""
        return tuple(
            folder / shard_filename(shard_id)
            for folder, shard_ids in self._probe_parts.items()
            if shard_id in shard_ids
        )

    @functools.cached_property
    def _probe_parts(self) -> dict[Path, set[int]]:
        """The parts of the probe, and the shards that each has a file of."""
        if not self.uses_probe:
            return {}
        parts = self.catalog.probe_parts(self.probe)
        return {part: set(read_summary(part).shards) for part in parts}

    @property
    def has_halves(self) -> bool:
        """Whether the probe has models, or test samples, enough for two halves to be compared."""
        if not self.uses_probe:
            return False
        by_architecture = "correct_by_architecture" in self.names
        num_models = len(self.probe.models) if by_architecture else self.probe.num_models
        return num_models > 1 or ("influence" in self.names and self.probe.num_test > 1)

    def find_source(self) -> Source:
        """What the inputs are made from; warns where a set of them is out of date."""
        source = self._find_main_source()
        if self.uses_target:
            content = self.target.catalog.embedding_fingerprint(
                self.target.embedding, self.target.urls
            )
            source = source._replace(content=source.content + content)
        if self.columns:
            columns = sorted(self.columns.values())
            run_ids = {column.run_id for column in columns}
            source = source._replace(
                parents=[*source.parents, *run_ids], content=f"{source.content}{columns}"
            )
        if self.within is None:
            return source
        warn_if_stale(self.catalog, self.within)
        return source._replace(
            parents=[*source.parents, self.within.run_id],
            content=source.content + self.within.fingerprint,
        )

    def _find_main_source(self) -> Source:
        catalog = self.catalog
        if self.uses_probe or self.uses_clustering:
            record = self.probe if self.uses_probe else self.clustering
            warn_if_stale(catalog, record)
            content, parents = record.fingerprint, [record.run_id]
            if self.uses_probe and self.uses_clustering:
                content += self.clustering.fingerprint
                parents.append(self.clustering.run_id)
            if self.uses_vectors:
                content += catalog.embedding_fingerprint(self.embedding)
                parents.append(catalog.require(EmbeddingRecord, self.embedding).run_id)
            return Source(record.name, parents, content)
        if self.uses_vectors or "labels" in self.names:
            embedding = catalog.require(EmbeddingRecord, self.embedding)
            content = catalog.embedding_fingerprint(embedding.embedding)
            return Source(embedding.embedding, [embedding.run_id], content)
        with catalog.reading() as connection:
            shards = connection.execute(
                "select shard_id, checksum from shards where num_samples > 0 order by 1"
            ).fetchall()
        return Source(None, [], str(shards))


def _probe_command(inputs: list[str], within: str | None) -> str:
    """The command that makes a probe with these inputs."""
    command = "curate probe"
    if "was_trained_on" in inputs:
        command += " --fraction 0.7"
    elif "influence" in inputs:
        command += " --model ridge --test SHARDS"
    elif "contributions" in inputs:
        command += " --test SHARDS"
    elif _GRADIENT_INPUTS & set(inputs):
        command += " --gradients 512 --test SHARDS"
    elif "correct_by_architecture" in inputs:
        models = ("linear", "ridge", "mlp:32", "mlp:64", "mlp", "mlp:64x64")
        command += " --folds 5" + "".join(f" --model {model}" for model in models)
    return command + (f" --within {within}" if within else "")


# What may be asked for of the whole corpus, by the parameter's name. The table for each sample is
# blocks.SHARD_INPUTS.
CORPUS_INPUTS: dict[str, Callable[[CorpusInputs], Any]] = {
    "centroids": lambda inputs: inputs.centroids,
    "class_means": lambda inputs: inputs.class_means,
    "reference_vectors": lambda inputs: inputs.references.vectors,
    "reference_ids": lambda inputs: inputs.references.sample_ids,
    "target_vectors": lambda inputs: inputs.target_vectors,
    "distance": lambda inputs: inputs.distance,
    "seed": lambda inputs: inputs.seed,
}


def list_options(
    parameters: Mapping[str, inspect.Parameter], own_inputs: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Of a function's parameters those that are options: no inputs, with defaults."""
    inputs = own_inputs.union(CORPUS_INPUTS, SHARD_INPUTS)
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and name not in inputs
    }


def describe_needs(
    parameters: Mapping[str, inspect.Parameter], own_inputs: frozenset[str] = frozenset()
) -> str:
    """What must be there before a function can be called: commands, options, labels, columns."""
    names = set(parameters)
    needs = []
    if {"labels", "class_means"} & names:
        needs.append("labels")
    if _CLUSTERING_INPUTS & names:
        needs.append("curate cluster")
    if set(PROBE_COLUMNS) & names:
        needs.append(_probe_command(list(parameters), None))
    if "caption_vectors" in names:
        needs.append("curate embed --captions")
    if "target_vectors" in names:
        needs.append("--target SHARDS|CATALOG")
    inputs = own_inputs.union(CORPUS_INPUTS, SHARD_INPUTS)
    needs += [
        f"the column {name}"
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in inputs
    ]
    return ", ".join(needs)


def check_options(
    option_names: Iterable[str], accepted: Iterable[str], there_are_none: str
) -> None:
    """OptionError for an option that the function, or functions, do not have."""
    available = sorted(accepted)
    for option in option_names:
        if option not in available:
            reason = f"there are: {', '.join(available)}" if available else there_are_none
            raise OptionError(f"--option {option}: no such option; {reason}")
