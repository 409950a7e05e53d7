"""The laws of a model: of random samples, of the Pareto envelope, and of each kind of selection."""

from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.progress import progress_bar
from curate.stages.fit.arms import (
    Arm,
    ArmErrors,
    RunFilter,
    SelectionKind,
    baseline_arms,
    check_one_rule,
    group_arms,
    group_by_kind,
    load_runs,
    stack_arms,
)
from curate.stages.fit.scaling_laws import MIN_SIZES, FittedLaw, fit_arms


class ArmLaw(NamedTuple):
    """A law with the arms that it was fitted to, all over the same seeds."""

    fitted: FittedLaw
    arms: ArmErrors


class ModelLaws(NamedTuple):
    """`kinds` has a law of the number of kept samples for each kind of selection (strategy with its
    options, keep and metric) that was compared within corpora of enough sizes. `corpus_sizes` are
    sorted; `epochs` are those of the largest, and of all with equal epochs.
    """

    random: ArmLaw
    pareto: ArmLaw
    kinds: dict[SelectionKind, ArmLaw]
    corpus_sizes: list[int]
    epochs: int


def load_arms(catalog: Catalog, runs: RunFilter) -> list[Arm]:
    """The arms of all validations that the filter lets through. Raises CurateError."""
    return group_arms(load_runs(catalog, runs))


def fit_laws(catalog: Catalog, runs: RunFilter, form: str) -> ModelLaws:
    """Fit all laws of a model. Raises CurateError for what cannot be one law, or too few sizes.

    As many random samples are a corpus of that size of which everything is kept, so everything and
    random samples are one law, and the envelope is over them as well.
    """
    training_runs = load_runs(catalog, runs)
    check_one_rule(training_runs, runs.schedule)
    arms = group_arms(training_runs)
    corpus_sizes = sorted({arm.corpus_size for arm in arms})
    _check_sizes(runs, arms, corpus_sizes, MIN_SIZES[form])
    baselines, kinds = baseline_arms(arms), group_by_kind(arms)
    pruned = [arm for arm in arms if arm.name == "pruned"]

    fitted_kinds = {
        kind: group
        for kind, group in kinds.items()
        if len({arm.num_samples for arm in group}) >= MIN_SIZES[form]
    }
    with progress_bar(f"fit {runs.model}", 2 + len(fitted_kinds), unit="laws") as advance:

        def fit(group: list[Arm], *, pareto: bool = False) -> ArmLaw:
            errors = stack_arms(group)
            law = fit_arms(errors.sizes, errors.errors, pareto=pareto, form=form)
            advance(1, 1)
            return ArmLaw(law, errors)

        return ModelLaws(
            random=fit(baselines),
            pareto=fit([*baselines, *pruned], pareto=True),
            kinds={kind: fit(group) for kind, group in fitted_kinds.items()},
            corpus_sizes=corpus_sizes,
            epochs=max((run.corpus_size, run.corpus_epochs) for run in training_runs)[1],
        )


def _check_sizes(runs: RunFilter, arms: list[Arm], corpus_sizes: list[int], least: int) -> None:
    if len(corpus_sizes) == 1:
        raise CurateError(
            f"all validations by '{runs.model}' are of one corpus of {corpus_sizes[0]:,} samples, "
            "and a law is of several sizes: draw smaller ones "
            "(`curate select --strategy random --keep 0.2 --name SMALL`), and in each "
            "`curate probe --within SMALL`, `curate score` by that probe, "
            "`curate validate --within SMALL`"
        )
    if len(np.unique([arm.num_samples for arm in baseline_arms(arms)])) < least:
        raise CurateError(
            f"the validations by '{runs.model}' ({runs.schedule}) have fewer than {least} sizes: "
            "compare more, within smaller selections (curate validate --within SELECTION)"
        )
