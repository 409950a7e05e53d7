"""The training runs that laws are fitted to, of all validations by one model, arm by arm."""

import fnmatch
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.package_data import read_sql
from curate.stages.fit.scaling_laws import MIN_SEEDS

FULL, PRUNED, RANDOM = "full", "pruned", "random"
# Equal iterations are equal to the nearest epoch of each arm.
_SAME_WORK = 1.1


class RunFilter(NamedTuple):
    """Which training runs: those of a model's validations, and of selections by some scorings
    (names, patterns or metrics) and strategies; no entry means all.
    """

    model: str
    schedule: str
    epochs: int | None
    scorings: tuple[str, ...]
    strategies: tuple[str, ...]


class TrainingRun(NamedTuple):
    """One model that was trained: on how much, of how large a corpus, and its test error.

    `corpus_epochs` are those of the arm that trains on the whole corpus.
    """

    validation: str
    arm: str
    selection: str | None
    strategy: str | None
    keep: float
    scoring: str | None
    metric: str | None
    strategy_options: str | None
    corpus_size: int
    corpus_epochs: int
    num_samples: int
    epochs: int
    seed: int
    error: float


class SelectionKind(NamedTuple):
    """What selections within corpora of several sizes have in common."""

    strategy: str
    keep: float
    metric: str | None
    options: str | None  # of the strategy

    def __str__(self) -> str:
        by = f" by {self.metric}" if self.metric else ""
        options = f" ({self.options})" if self.options else ""
        return f"{self.strategy} {self.keep:g}{by}{options}"


class Arm(NamedTuple):
    """An arm of a validation; errors float [seeds]. `kind` is that of the selection, if it is of
    one; random arms have the kind of the selection that they are compared with.
    """

    name: str  # full, pruned or random
    validation: str
    selection: str | None
    kind: SelectionKind | None
    corpus_size: int
    num_samples: int
    presentations: int  # samples that a model sees in all its epochs
    errors: np.ndarray

    @property
    def label(self) -> str:
        """How pictures name it."""
        if self.name == FULL:
            return "everything"
        return str(self.kind or self.selection) if self.name == PRUNED else RANDOM


class ArmErrors(NamedTuple):
    """Arms to fit a law to: sizes int [arms], errors float [arms, seeds], names."""

    sizes: np.ndarray
    errors: np.ndarray
    names: list[str]


def load_runs(catalog: Catalog, runs: RunFilter) -> list[TrainingRun]:
    """The training runs. Raises CurateError where there are none, or none by these scorings."""
    parameters = {"model": runs.model, "schedule": runs.schedule, "epochs": runs.epochs}
    with catalog.reading() as connection:
        rows = connection.execute(read_sql("stages/fit_runs"), parameters).fetchall()
    all_runs = [TrainingRun(*row) for row in rows]
    if not all_runs:
        length = f", {runs.epochs} epochs" if runs.epochs else ""
        raise CurateError(
            f"no validation by '{runs.model}' ({runs.schedule}{length}) yet: "
            f"make some with `curate validate --model {runs.model}`"
        )
    pruned = [run for run in all_runs if run.arm == PRUNED]
    if runs.scorings:
        pruned = [run for run in pruned if _is_by_scoring(run, runs.scorings)]
    if runs.strategies:
        pruned = [run for run in pruned if run.strategy in runs.strategies]
    if not pruned and (runs.scorings or runs.strategies):
        pairs = {(run.strategy, run.scoring) for run in all_runs if run.arm == PRUNED}
        texts = sorted(f"{strategy} by {scoring}" for strategy, scoring in pairs)
        raise CurateError(
            "no validated selection is by this --scoring and --strategy; "
            f"there are: {', '.join(texts) or 'none'}"
        )
    validations = {run.validation for run in pruned} or {run.validation for run in all_runs}
    baseline_runs = [run for run in all_runs if run.arm != PRUNED and run.validation in validations]
    return [*baseline_runs, *pruned]


def _is_by_scoring(run: TrainingRun, patterns: tuple[str, ...]) -> bool:
    return run.metric in patterns or any(
        fnmatch.fnmatchcase(run.scoring or "", pattern) for pattern in patterns
    )


def check_one_rule(runs: list[TrainingRun], schedule: str) -> None:
    """CurateError where corpora of several sizes were trained by different rules.

    Their errors differ by more than the data then. Equal epochs are the same number in all corpora;
    equal iterations are as many presentations.
    """
    corpora = sorted({(run.corpus_size, run.corpus_epochs) for run in runs})
    if schedule == "epochs":
        epochs = sorted({corpus_epochs for _, corpus_epochs in corpora})
        if len(epochs) > 1:
            sizes_text = ", ".join(f"{size:,} samples for {count}" for size, count in corpora)
            raise CurateError(
                f"corpora of several sizes were trained by different rules ({sizes_text} epochs): "
                f"choose one, such as --epochs {epochs[0]}, "
                f"or repeat the others with `curate validate --epochs {epochs[0]}`"
            )
        return
    work = [size * count for size, count in corpora]
    if max(work) > _SAME_WORK * min(work):
        smallest = corpora[0][0]
        raise CurateError(
            "corpora of several sizes were trained for different numbers of iterations: repeat the "
            "smaller ones for longer, such as `curate validate --within SELECTION --schedule "
            f"iterations --epochs {round(max(work) / smallest)}` for the {smallest:,} samples"
        )


def group_arms(runs: list[TrainingRun]) -> list[Arm]:
    """The arms, each with the errors of those seeds that all of them have.

    Raises CurateError for fewer than three seeds, or an arm without an error.
    """
    seeds_of: dict[tuple[str, str, str | None], dict[int, TrainingRun]] = {}
    for run in runs:
        seeds_of.setdefault((run.validation, run.arm, run.selection), {})[run.seed] = run
    seeds = sorted(set.intersection(*map(set, seeds_of.values())))
    if len(seeds) < MIN_SEEDS:
        raise CurateError(
            "the validations have fewer than three seeds in common: "
            "run them with the same --seed and --seeds"
        )
    arms = []
    for by_seed in seeds_of.values():
        run = next(iter(by_seed.values()))
        errors = np.array([by_seed[seed].error for seed in seeds])
        if not errors.mean():
            raise CurateError(
                "an arm makes no error, and a law is of errors above 0: "
                "validate with harder test shards"
            )
        arm = Arm(
            run.arm,
            run.validation,
            run.selection,
            _kind_of(run),
            run.corpus_size,
            run.num_samples,
            run.num_samples * run.epochs,
            errors,
        )
        arms.append(arm)
    return arms


def _kind_of(run: TrainingRun) -> SelectionKind | None:
    if not run.strategy:
        return None
    return SelectionKind(run.strategy, run.keep, run.metric, run.strategy_options)


def baseline_arms(arms: list[Arm]) -> list[Arm]:
    """Everything and random samples, each training once.

    Selections of one size are compared with the same random samples, and a corpus may be that of
    several validations.
    """
    baselines = [arm for arm in arms if arm.name != PRUNED]
    distinct = {(arm.name, arm.num_samples, arm.errors.tobytes()): arm for arm in baselines}
    return list(distinct.values())


def stack_arms(arms: list[Arm]) -> ArmErrors:
    """The arms as arrays, by their size."""
    ordered = sorted(arms, key=lambda arm: arm.num_samples)
    return ArmErrors(
        np.array([arm.num_samples for arm in ordered]),
        np.stack([arm.errors for arm in ordered]),
        [arm.label for arm in ordered],
    )


def group_by_kind(arms: list[Arm]) -> dict[SelectionKind, list[Arm]]:
    """The pruned arms by kind of selection, the largest keep first, without random selections."""
    groups: dict[SelectionKind, list[Arm]] = {}
    for arm in arms:
        if arm.name == PRUNED and arm.kind and arm.kind.strategy != RANDOM:
            groups.setdefault(arm.kind, []).append(arm)
    return dict(sorted(groups.items(), key=lambda item: (item[0].strategy, -item[0].keep)))
