"""`curate fit`: how the test error falls with the number of training samples."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import FitPointRecord, FitRecord
from curate.formatting import file_safe
from curate.options import Option, verb
from curate.progress import announce, log
from curate.stages.fit import figures
from curate.stages.fit.arms import RunFilter, SelectionKind
from curate.stages.fit.laws import ArmLaw, fit_laws, load_arms
from curate.stages.fit.scaling_laws import FORMS, MIN_SIZES, compare_exponents, envelope
from curate.stages.select.stage import check_strategy
from curate.stages.validate.stage import SCHEDULES

Schedule = Annotated[str, Option("Validations with this schedule.", choices=SCHEDULES)]
FitEpochs = Annotated[
    int | None,
    Option("Validations of so many epochs.", minimum=1, default="all; they must agree"),
]
Form = Annotated[
    str,
    Option("The law: power (with an asymptote), pure-power (without), exponential.", choices=FORMS),
]
Scorings = Annotated[
    list[str] | str | None,
    Option(
        "Only selections by these scorings: a name, a pattern such as 'el2n_*', or a metric; "
        "repeatable.",
        default="all",
    ),
]
Strategies = Annotated[
    list[str] | str | None,
    Option("Only selections by these strategies; repeatable.", default="all", check=check_strategy),
]


@verb()
def fit(
    catalog: Catalog | str | Path,
    *,
    model: Annotated[
        list[str] | str,
        Option("Validations by this model; repeatable: laws of several, side by side."),
    ] = "mlp",
    schedule: Schedule = "epochs",
    epochs: FitEpochs = None,
    form: Form = "power",
    scoring: Scorings = None,
    strategy: Strategies = None,
) -> list[str]:
    """Fit the error of random samples, of the Pareto envelope over initial sizes and keeps, and of
    each kind of selection (strategy with its options, keep and metric) by itself.

    From all validations by the model, so compare selections within corpora of several sizes first
    (`--within`). All must have been trained by the same rule: equal epochs are the same number at
    every size, equal iterations as many presentations. The 95% intervals of the exponents, and of
    what each exceeds that of random samples by, are over seeds, by the jackknife, and the
    envelope's points are chosen and measured by different seeds. A kind of selection has a law
    where it was compared within corpora of four sizes (three for pure-power). Draws
    figures/scaling-MODEL and crossover-MODEL, and from one corpus on metrics-MODEL, compute-MODEL
    and classes-MODEL. Returns the fits' names; `curate query exponents` has a row per model. Raises
    CurateError for one corpus, fewer than 4 sizes or fewer than 3 seeds.
    """
    catalog = Catalog(catalog)
    names: list[str] = []
    for spec in dict.fromkeys(as_list(model)):
        runs = RunFilter(spec, schedule, epochs, tuple(as_list(scoring)), tuple(as_list(strategy)))
        names += _fit_model(catalog, runs, form)
    return names


def as_list(value: list[str] | str | None) -> list[str]:
    """One value, several or none, as a list."""
    return [value] if isinstance(value, str) else list(value or [])


def _fit_model(catalog: Catalog, runs: RunFilter, form: str) -> list[str]:
    announce(f"fit: reading the validations by {runs.model}")
    base_name, suffix = _base_name(runs), "" if form == "power" else f"-{form}"
    figures.draw_arms(catalog, base_name, load_arms(catalog, runs))
    laws = fit_laws(catalog, runs, form)
    random_law = laws.random
    names = [
        _commit(catalog, f"{base_name}-random{suffix}", runs, "random", random_law),
        _commit(catalog, f"{base_name}-pareto{suffix}", runs, "pareto", laws.pareto, random_law),
    ]
    for kind, law in laws.kinds.items():
        words = (base_name, kind.strategy, f"{kind.keep:g}", kind.metric, kind.options)
        name = f"{'-'.join(_name_safe(word) for word in words if word)}{suffix}"
        names.append(_commit(catalog, name, runs, "pruned", law, random_law, kind))
    if not laws.kinds:
        log.info(
            "no law of one keep: that takes corpora of %d sizes, and there are %d",
            MIN_SIZES[form],
            len(laws.corpus_sizes),
        )
    figures.draw_laws(catalog, f"{base_name}{suffix}", laws)
    return names


def _base_name(runs: RunFilter) -> str:
    """What distinguishes the fits of some training runs."""
    words = [
        file_safe(runs.model),
        runs.schedule if runs.schedule != "epochs" else None,
        f"{runs.epochs}epochs" if runs.epochs else None,
        *runs.scorings,
        *runs.strategies,
    ]
    return "-".join(_name_safe(word) for word in words if word)


def _name_safe(word: str) -> str:
    """Without the characters of patterns and paths, which no name has."""
    return re.sub(r"[^A-Za-z0-9@_.,+=-]", "", word)


def _commit(
    catalog: Catalog,
    name: str,
    runs: RunFilter,
    arms: str,
    arm_law: ArmLaw,
    random_law: ArmLaw | None = None,
    kind: SelectionKind | None = None,
) -> str:
    """Put a law and its points into the catalog."""
    sets.check_name(name)
    fitted, errors = arm_law
    law = fitted.law
    if arms == "pareto":
        sizes, mean_errors = envelope(errors.sizes, errors.errors)
    else:
        sizes, mean_errors = errors.sizes.astype(float), errors.errors.mean(axis=1)
    steeper = compare_exponents(fitted, random_law.fitted) if random_law else None
    settings = {**runs._asdict(), "arms": arms, "form": law.form}
    fingerprint = provenance.fingerprint("fit", settings, str(errors.errors.tolist()))
    record = FitRecord(
        fit=name,
        model=runs.model,
        arms=arms,
        form=law.form,
        exponent=law.exponent,
        exponent_low=fitted.low,
        exponent_high=fitted.high,
        amplitude=law.amplitude,
        asymptote=law.asymptote,
        num_points=len(sizes),
        seeds=errors.errors.shape[1],
        fingerprint=fingerprint,
        run_id=0,
        schedule=runs.schedule,
        epochs=runs.epochs,
        strategy=kind.strategy if kind else None,
        keep=kind.keep if kind else None,
        metric=kind.metric if kind else None,
        exponent_vs_random=steeper.estimate if steeper else None,
        exponent_vs_random_interval=steeper.half_width if steeper else None,
        strategy_options=kind.options if kind else None,
    )
    with (
        catalog.record_run("fit", name, settings, fingerprint=fingerprint) as run_id,
        catalog.writing() as connection,
    ):
        sets.replace_set(connection, replace(record, run_id=run_id))
        for size, error, fitted_error in zip(sizes, mean_errors, law(sizes), strict=True):
            point = FitPointRecord(name, float(size), float(error), float(fitted_error))
            sets.insert_row(connection, "fit_points", point._asdict())
    against = f", {steeper.estimate:+.3g} ± {steeper.half_width:.2g} over random" if steeper else ""
    log.info(
        "fit '%s': exponent %.3g (95%%: %.3g to %.3g)%s; asymptote %.3g, %d sizes",
        name,
        law.exponent,
        fitted.low,
        fitted.high,
        against,
        law.asymptote,
        len(np.unique(sizes)),
    )
    return name
