"""What a strategy is given: the inputs that metrics have, for all candidates, and its own."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from curate.catalog.records import ScoringRecord
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.stages.inputs.blocks import SHARD_INPUTS, load_block
from curate.stages.inputs.corpus import (
    CORPUS_INPUTS,
    CorpusInputs,
    GivenOption,
    Source,
    list_options,
)
from curate.stages.select.candidates import Candidates
from curate.stages.select.neighbours import find_clusters, find_neighbours
from curate.stages.select.survivors import load_survivor_distances, score_survivors
from curate.strategies import Neighbours, strategies


class _CandidateSubset(NamedTuple):
    """Some of the candidates, as indices or a slice, and how many of them are to be kept."""

    candidates: "CandidateInputs"
    rows: Any
    num_kept: int

    def find_neighbours(self, count: int) -> Neighbours:
        """The `count` nearest others of each of them, by the distance of the vectors."""
        inputs = self.candidates.inputs
        return find_neighbours(
            self.candidates.columns["vectors"][self.rows],
            count,
            distance=inputs.distance,
            seed=inputs.seed,
            folder=self.candidates.folder,
            shared_folder=self.candidates.shared_folder,
            resources=inputs.resources,
        )

    def find_clusters(self, rows: np.ndarray, k: int) -> np.ndarray:
        """The cluster of each row after k-means on all of them: [n, d] -> int32 [n]."""
        inputs = self.candidates.inputs
        return find_clusters(rows, k, inputs.distance, inputs.seed)


# What only strategies may ask for, by the parameter's name, beside `scores` and `groups`.
PART_INPUTS: dict[str, Callable[[_CandidateSubset], Any]] = {
    "num_kept": lambda subset: subset.num_kept,
    "find_neighbours": lambda subset: subset.find_neighbours,
    "find_clusters": lambda subset: subset.find_clusters,
    "survivor_distances": lambda subset: subset.candidates.survivor_distances[subset.rows],
}
# What comes with the candidates themselves, or from the tables of others.
_ALWAYS_LOADED = frozenset(
    {"scores", "groups", "num_kept", "sample_ids", "seed", "find_neighbours", "find_clusters"}
)
# Where one of them is made from inputs of the other tables, these.
_MADE_FROM: dict[str, tuple[str, ...]] = {
    "find_neighbours": ("vectors",),
    "find_clusters": ("centroids",),
}


def strategy_parameters(strategy: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a strategy by their names: its inputs and its options."""
    return inspect.signature(strategies[strategy]).parameters


def needs_scores(strategy: str) -> bool:
    """Whether a strategy ranks by scores; one with the default None takes them if there are."""
    return _needs_scores(strategy_parameters(strategy))


def takes_scores(strategy: str) -> bool:
    """Whether a strategy looks at scores where there are any."""
    return "scores" in strategy_parameters(strategy)


def chooses_for_itself(strategy: str) -> bool:
    """Whether a strategy fills the whole budget, so that there are no quotas beside its own."""
    return "num_kept" in strategy_parameters(strategy)


def strategy_options(strategy: str) -> dict[str, Any]:
    """The options of a strategy itself, with their defaults."""
    return list_options(strategy_parameters(strategy), StrategyInputs.own_inputs)


@dataclass
class StrategyInputs(CorpusInputs):
    """The inputs of one strategy; `options` are its own."""

    options: dict[str, Any]
    keep: float
    resources: Resources

    own_inputs: ClassVar[frozenset[str]] = frozenset({"scores", "groups", *PART_INPUTS})

    @property
    def names(self) -> list[str]:
        """The function's parameters, and what these are made from."""
        needed = [source for name in self.parameters for source in _MADE_FROM.get(name, ())]
        return list(dict.fromkeys([*self.parameters, *needed]))

    @property
    def reads_catalog(self) -> bool:
        """Whether anything is asked for beside what every selection loads."""
        return bool(set(self.names) - _ALWAYS_LOADED.union(self.option_defaults))

    def given_options(self, values: Mapping[str, str]) -> list[GivenOption]:
        """The options that the strategy uses, which were given and are not the defaults."""
        options = super().given_options(values)
        if "survivor_distances" in self.names and self.embedding_option:
            name = self.embedding_option
            options.append(GivenOption("--embedding", name, name))
        return options

    @functools.cached_property
    def sample_names(self) -> list[str]:
        """The inputs with a value for each sample that are read shard by shard."""
        read = {*SHARD_INPUTS, *self.column_names} - {"sample_ids"}
        return [name for name in self.names if name in read]

    @functools.cached_property
    def survivors(self) -> ScoringRecord:
        """The prototypes of what deduplication leaves."""
        share = float(self.options["keep_dedup"])
        if self.keep > share:
            raise OptionError(
                f"--keep {self.keep:g}: {self.asker} keeps a part of what deduplication leaves, "
                f"{share:g}: raise --option keep_dedup, or lower --keep"
            )
        return score_survivors(
            self.catalog,
            share,
            embedding=self.embedding_option,
            within=self.within_option,
            seed=self.seed,
            workers=self.resources.workers,
        )

    def find_source(self) -> Source:
        """What the inputs are made from; warns where a set of them is out of date."""
        if "survivor_distances" not in self.names:
            return super().find_source()
        return Source(self.survivors.scoring, [self.survivors.run_id], self.survivors.fingerprint)

    def gather(self, candidates: Candidates, folder: Path, shared_folder: str) -> "CandidateInputs":
        """The inputs of all candidates that have every one, and those of the whole corpus.

        Arrays of more than one axis lie in files in `folder`, so that the system may take their
        memory back. CurateError where no candidate has all inputs.
        """
        is_usable = np.ones(len(candidates.sample_ids), bool)
        if _needs_scores(self.parameters):
            is_usable = ~np.isnan(candidates.scores)
            if not is_usable.any():
                raise CurateError(
                    "no candidate has a score: choose another --scoring, or a --where that has some"
                )
        columns: dict[str, np.ndarray] = {}
        if self.sample_names:
            is_usable, columns = self._read_columns(candidates.sample_ids, is_usable, folder)
            if not is_usable.any():
                raise CurateError(
                    f"no candidate has what {self.asker} asks for ({', '.join(self.sample_names)}):"
                    " widen --where or --within, or choose another --embedding or --clustering"
                )
        num_rows = int(is_usable.sum())
        # A view of all of them, not a copy.
        rows: Any = slice(None) if num_rows == len(is_usable) else np.flatnonzero(is_usable)
        corpus = {name: CORPUS_INPUTS[name](self) for name in self.names if name in CORPUS_INPUTS}
        columns["groups"] = candidates.groups[rows]
        columns["sample_ids"] = candidates.sample_ids[rows]
        if "scores" in self.parameters and not np.isnan(candidates.scores).all():
            columns["scores"] = candidates.scores[rows]
        return CandidateInputs(self, rows, num_rows, columns, corpus, folder, shared_folder)

    def _read_columns(
        self, sample_ids: np.ndarray, is_usable: np.ndarray, folder: Path
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which samples have all inputs, bool [n], and these, in the order of the ids, [u, …]."""
        usable_ids = sample_ids[is_usable]
        has_inputs = np.zeros(len(sample_ids), bool)
        distance = self.distance if self.uses_vectors else "cosine"
        with contextlib.ExitStack() as stack:
            columns = {
                name: stack.enter_context(_Column(folder / f"{name}.raw"))
                for name in self.sample_names
            }
            for shard in self.shards():
                bounds = [shard.sample_ids[0], shard.sample_ids[-1] + 1]
                first, last = np.searchsorted(usable_ids, bounds)
                if first == last:
                    continue
                is_wanted = shard.is_included & np.isin(shard.sample_ids, usable_ids[first:last])
                _, block = load_block(shard._replace(is_included=is_wanted), self.names, distance)
                has_inputs[np.searchsorted(sample_ids, block.sample_ids)] = True
                for name, column in columns.items():
                    read = SHARD_INPUTS.get(name)
                    column.append(read(block) if read else block.column(name))
        return has_inputs, {name: column.load() for name, column in columns.items()}


def _needs_scores(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return "scores" in parameters and parameters["scores"].default is inspect.Parameter.empty


class _Column(contextlib.AbstractContextManager["_Column"]):
    """An input that is put together shard by shard: in memory, or in a file if it has more axes.

    The file is written, not mapped, until it is whole: a full disk is then an error, not a signal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._parts: list[np.ndarray] = []
        self._num_rows = 0
        self._row = np.empty(0)  # of which type and shape each is

    def append(self, values: np.ndarray) -> None:
        self._row = values[:0]
        self._num_rows += len(values)
        if values.ndim == 1:
            self._parts.append(values)
            return
        if self._file is None:
            self._file = self._path.open("wb")
        self._file.write(np.ascontiguousarray(values).data)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def load(self) -> np.ndarray:
        """All values, [n, …], which a caller must not change."""
        if self._file is None or not self._num_rows:
            return np.concatenate([self._row, *self._parts])
        shape = (self._num_rows, *self._row.shape[1:])
        return np.memmap(self._path, self._row.dtype, mode="r", shape=shape)


@dataclass
class CandidateInputs:
    """The inputs of the candidates that have all of them: their rows among all, int [u] or a slice.

    `columns` have a value for each of these, [u, …]; `corpus` is what holds for all.
    """

    inputs: StrategyInputs
    rows: Any
    num_rows: int
    columns: dict[str, np.ndarray]
    corpus: dict[str, Any]
    folder: Path
    shared_folder: str

    @functools.cached_property
    def survivor_distances(self) -> np.ndarray:
        """The distances to the centroids of the survivors, −inf for all others: float64 [u]."""
        inputs = self.inputs
        return load_survivor_distances(
            inputs.catalog, inputs.survivors.scoring, self.columns["sample_ids"]
        )

    def arguments(self, rows: Any, num_kept: int) -> dict[str, Any]:
        """The strategy's arguments for some of the candidates, by indices or a slice."""
        subset = _CandidateSubset(self, rows, num_kept)
        arguments: dict[str, Any] = {}
        for name in self.inputs.parameters:
            if name in self.columns:
                arguments[name] = self.columns[name][rows]
            elif name in self.corpus:
                arguments[name] = self.corpus[name]
            elif name in PART_INPUTS:
                arguments[name] = PART_INPUTS[name](subset)
        return arguments | self.inputs.options
