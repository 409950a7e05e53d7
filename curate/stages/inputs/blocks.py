"""What is known of the samples of one shard: the inputs of metrics and strategies, by name.

It knows no catalog: workers load what the driver tells them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate.distances import normalize_rows
from curate.errors import CurateError
from curate.formats.probe_outputs import read_outputs, read_test_outputs
from curate.formats.vectors import read_vectors
from curate.metrics.influence import influence_of_leave_one_out, influence_of_subsets


class ShardSamples(NamedTuple):
    """The samples of one shard, and the files with what is known of them.

    Ids in tar order and class numbers (−1 without a label), int64 [n] each; `is_included` says
    which samples are of the corpus that is scored, bool [n].
    """

    sample_ids: np.ndarray
    labels: np.ndarray
    is_included: np.ndarray
    vector_file: str | None
    probe_files: tuple[Path, ...] = ()  # one for each part of the probe
    columns: tuple[tuple[str, np.ndarray], ...] = ()  # of samples, by the name of the parameter
    caption_file: str | None = None


@dataclass(frozen=True)
class SampleBlock:
    """Some samples of a shard, and what is known of each.

    `half` 0 or 1 looks at every second of the probe's models only.
    """

    sample_ids: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    parts: dict[Path, dict[str, np.ndarray]]
    half: int | None = None
    columns: tuple[tuple[str, np.ndarray], ...] = ()
    caption_vectors: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> "SampleBlock":
        parts = {
            path: {name: column[rows] for name, column in columns.items()}
            for path, columns in self.parts.items()
        }
        return replace(
            self,
            sample_ids=self.sample_ids[rows],
            labels=self.labels[rows],
            vectors=self.vectors[rows],
            parts=parts,
            columns=tuple((name, values[rows]) for name, values in self.columns),
            caption_vectors=None if self.caption_vectors is None else self.caption_vectors[rows],
        )

    def column(self, name: str) -> np.ndarray:
        """A column of the samples by the name of the parameter, [n]."""
        return dict(self.columns)[name]

    def model_column(self, name: str) -> np.ndarray:
        """A column of the probe's parts, [n, m, …] over all models that have it.

        Raises CurateError if none has.
        """
        columns = [part[name] for part in self.parts.values() if name in part]
        if not columns:
            probe = next(iter(self.parts)).parent.parent.parent.name
            raise CurateError(
                f"the models of the probe '{probe}' have no {name}: "
                "choose another probe with --probe"
            )
        return self._select_half(np.concatenate(columns, axis=1))

    def correct_by_architecture(self) -> np.ndarray:
        """The share of each architecture's models that are right: float64 [n, architectures].

        Of those that were not trained on the sample, at least one of every fold; where all were
        trained on all samples, of the first, which is right or wrong.
        """
        by_architecture: dict[str, list[dict[str, np.ndarray]]] = {}
        for path, part in self.parts.items():  # in the order of their names, ARCHITECTURE-NUMBER
            architecture, _, _ = path.parent.name.rpartition("-")
            by_architecture.setdefault(architecture, []).append(part)
        columns = []
        for parts in by_architecture.values():
            correct = np.concatenate([part["correct"] for part in parts], axis=1)
            if "was_trained_on" in parts[0]:
                trained = np.concatenate([part["was_trained_on"] for part in parts], axis=1)
                # A sample without a label was left out by all; none was left out by no model.
                num_left_out = (~trained).sum(axis=1)
                columns.append((correct & ~trained).sum(axis=1) / num_left_out)
            else:
                columns.append(correct[:, 0].astype(np.float64))
        return self._select_half(np.stack(columns, axis=1))

    def influence(self) -> np.ndarray:
        """The influence of each sample on each test sample, float [n, t]."""
        tests = [_load_test_outputs(path.parent) for path in self.parts]
        part, test = next(iter(self.parts.values())), tests[0]
        is_labelled = test["labels"] >= 0
        if "leave_one_out" in part:
            effects = influence_of_leave_one_out(
                part["leave_one_out"], test["rows"], test["outputs"], test["labels"]
            )
            return self._select_half(effects[:, is_labelled])
        test_correct = np.concatenate([test["correct"][:, test["labels"] >= 0] for test in tests])
        was_trained_on = self.model_column("was_trained_on")
        return influence_of_subsets(was_trained_on, self._select_half(test_correct.T).T)

    def target_gradients(self) -> np.ndarray:
        """The mean projected gradient of the probe's test samples by each model, float32 [m, k]."""
        tests = [_load_test_outputs(path.parent) for path in self.parts]
        gradients = np.concatenate([test["target_gradients"] for test in tests])
        return self._select_half(gradients.T).T

    def _select_half(self, array: np.ndarray) -> np.ndarray:
        return array if self.half is None else array[:, self.half :: 2]


@functools.lru_cache(maxsize=64)
def _load_test_outputs(part: Path) -> dict[str, np.ndarray]:
    return read_test_outputs(part)


# What may be asked for of each sample, by the parameter's name. The table of what holds for the
# whole corpus is corpus.CORPUS_INPUTS.
SHARD_INPUTS: dict[str, Callable[[SampleBlock], Any]] = {
    "vectors": lambda block: block.vectors,
    "caption_vectors": lambda block: block.caption_vectors,
    "labels": lambda block: block.labels,
    "sample_ids": lambda block: block.sample_ids,
    "clusters": lambda block: block.column("clusters"),
    "distances": lambda block: block.column("distances"),
    "probabilities": lambda block: block.model_column("probabilities").astype(np.float32),
    "correct": lambda block: block.model_column("correct"),
    "was_trained_on": lambda block: block.model_column("was_trained_on"),
    "history": lambda block: block.model_column("history"),
    "margins": lambda block: block.model_column("margins"),
    "feature_norms": lambda block: block.model_column("feature_norms"),
    "correct_by_architecture": SampleBlock.correct_by_architecture,
    "influence": SampleBlock.influence,
    "contributions": lambda block: block.model_column("contributions"),
    "gradient_features": lambda block: block.model_column("gradient_features"),
    "target_gradients": SampleBlock.target_gradients,
}
# Which of them come from the assignments of a clustering.
ASSIGNMENT_INPUTS = ("clusters", "distances")
# Which of them come from a probe, and the columns that they need.
PROBE_COLUMNS: dict[str, tuple[str, ...]] = {
    "probabilities": ("probabilities",),
    "correct": ("correct",),
    "was_trained_on": ("was_trained_on",),
    "history": ("history",),
    "margins": ("margins",),
    "feature_norms": ("feature_norms",),
    "correct_by_architecture": ("correct", "was_trained_on"),
    "influence": ("leave_one_out", "was_trained_on"),
    "contributions": ("contributions",),
    "gradient_features": ("gradient_features",),
    "target_gradients": (),
}


def load_block(
    shard: ShardSamples, inputs: list[str], distance: str
) -> tuple[np.ndarray, SampleBlock]:
    """Which samples of a shard have all of these inputs, bool [n], and what is known of them."""
    is_scorable = shard.is_included.copy()
    for name, values in shard.columns:
        if name in ASSIGNMENT_INPUTS:
            is_scorable &= values >= 0  # −1 and NaN: it is in no cluster
    needs_vectors = "vectors" in inputs
    vector_ids, vectors = np.array([], np.int64), np.empty((0, 1), np.float32)
    if needs_vectors:
        if shard.vector_file:
            vector_ids, vectors = read_vectors(shard.vector_file)
        # Another embedding may have brought samples that this one lacks, and the reverse.
        is_scorable &= np.isin(shard.sample_ids, vector_ids)
    caption_ids, captions = np.array([], np.int64), np.empty((0, 1), np.float32)
    if "caption_vectors" in inputs:
        if shard.caption_file:
            caption_ids, captions = read_vectors(shard.caption_file)
        is_scorable &= np.isin(shard.sample_ids, caption_ids)
    names = sorted({name for key in inputs for name in PROBE_COLUMNS.get(key, ())})
    outputs = {path: read_outputs(path, names) for path in shard.probe_files}
    if names:
        probed_ids = [ids for ids, _ in outputs.values()]
        is_scorable &= np.isin(shard.sample_ids, probed_ids[0] if probed_ids else [])
    sample_ids = shard.sample_ids[is_scorable]
    parts = {
        path: {name: column[np.searchsorted(ids, sample_ids)] for name, column in columns.items()}
        for path, (ids, columns) in outputs.items()
    }
    if needs_vectors:
        rows = normalize_rows(vectors[np.searchsorted(vector_ids, sample_ids)], distance)
    else:
        rows = np.empty((len(sample_ids), 0))
    labels = shard.labels[is_scorable]
    columns = tuple((name, values[is_scorable]) for name, values in shard.columns)
    caption_vectors = None
    if "caption_vectors" in inputs:
        caption_vectors = captions[np.searchsorted(caption_ids, sample_ids)]
    block = SampleBlock(
        sample_ids, labels, rows, parts, columns=columns, caption_vectors=caption_vectors
    )
    return is_scorable, block


class ClassSums(NamedTuple):
    """The sum of each class's rows, float64 [classes, dim], and their counts [classes]."""

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class SumClasses:
    """The task: the class sums of one shard; None where it has no labelled vectors."""

    num_classes: int
    distance: str

    def __call__(self, shard: ShardSamples) -> ClassSums | None:
        _, block = load_block(shard, ["vectors"], self.distance)
        is_labelled = block.labels >= 0
        if not is_labelled.any():
            return None
        labels = block.labels[is_labelled]
        sums = np.zeros((self.num_classes, block.vectors.shape[1]))
        np.add.at(sums, labels, block.vectors[is_labelled].astype(np.float64))
        return ClassSums(sums, np.bincount(labels, minlength=self.num_classes))
