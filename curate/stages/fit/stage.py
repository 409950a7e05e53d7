"""`curate fit`: how the test error falls with the number of training samples."""

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import FitPointRecord, FitRecord
from curate.errors import CurateError
from curate.formatting import file_safe
from curate.options import Option, verb
from curate.progress import log
from curate.stages.fit import charts
from curate.stages.fit.scaling_laws import FORMS, Law, envelope, fit_arms
from curate.stages.validate.stage import SCHEDULES

_MIN_SIZES = 4  # a law has three parameters
_MIN_SEEDS = 3


class ArmErrors(NamedTuple):
    """Training runs of one model by arm: sizes int [arms], errors float [arms, seeds], names."""

    sizes: np.ndarray
    errors: np.ndarray
    names: list[str]


@verb()
def fit(
    catalog: Catalog | str | Path,
    *,
    model: Annotated[str, Option("Validations by this model.")] = "mlp",
    schedule: Annotated[
        str, Option("Validations with this schedule.", choices=SCHEDULES)
    ] = "epochs",
    form: Annotated[
        str, Option("power (with an asymptote) or exponential.", choices=FORMS)
    ] = "power",
) -> list[str]:
    """Fit the error of random samples, and of the Pareto envelope over initial sizes and keeps.

    From all validations by the model, so compare selections within corpora of several sizes first
    (`--within`). The 95% intervals of the exponents are over seeds, by the jackknife, and the
    envelope's points are chosen and measured by different seeds. Draws figures/scaling-MODEL and
    figures/crossover-MODEL. Returns the fits' names. Raises CurateError for fewer than 4 sizes or 3
    seeds.
    """
    catalog = Catalog(catalog)
    arm_errors = {
        arms: _load_errors(catalog, model, schedule, arms) for arms in ("random", "pareto")
    }
    suffix = "" if form == "power" else f"-{form}"
    laws: dict[str, Law] = {}
    names = []
    for arms, errors in arm_errors.items():
        name = sets.check_name(f"{file_safe(model)}-{arms}{suffix}")
        if len(np.unique(errors.sizes)) < _MIN_SIZES:
            raise CurateError(
                f"the validations by '{model}' ({schedule}) have fewer than {_MIN_SIZES} sizes: "
                "compare more, within smaller selections (curate validate --within SELECTION)"
            )
        laws[arms] = _fit(catalog, name, model, arms, errors, form)
        names.append(name)
    _draw(catalog, f"{file_safe(model)}{suffix}", model, schedule, arm_errors, laws)
    return names


def _load_errors(catalog: Catalog, model: str, schedule: str, arms: str) -> ArmErrors:
    """Everything and random draws, and for pareto the selections too; seeds that all arms have.

    As many random samples are a corpus of that size of which everything is kept, so the envelope is
    over them as well.
    """
    arm_names = ["full", "random"] if arms == "random" else ["full", "random", "pruned"]
    with catalog.reading() as connection:
        rows = connection.execute(
            "select training_runs.num_samples, training_runs.seed, 1 - avg(accuracy), "
            "case arm "
            "when 'pruned' then concat_ws(' ', strategy, training_runs.keep, 'by ' || metric) "
            "when 'full' then 'everything' else arm end as name, "
            "validation || coalesce(selection, '') || arm as key "
            "from training_runs join validations using (validation) "
            "left join selections using (selection) "
            "left join scorings on scorings.scoring = selections.scoring "
            "where model = $1 and schedule = $2 and len(transfer) = 0 "
            "and arm in (select unnest($3)) "
            "group by all order by 1, key, 2",
            [model, schedule, arm_names],
        ).fetchall()
    if not rows:
        raise CurateError(
            f"no validation by '{model}' ({schedule}) yet: "
            f"make some with `curate validate --model {model}`"
        )
    errors_by_arm: dict[str, dict[int, float]] = {}
    sizes_and_names: dict[str, tuple[int, str]] = {}
    for size, seed, error, name, key in rows:
        errors_by_arm.setdefault(key, {})[seed] = error
        sizes_and_names[key] = (size, name)
    seeds = sorted(set.intersection(*map(set, errors_by_arm.values())))
    if len(seeds) < _MIN_SEEDS:
        raise CurateError(
            "the validations have fewer than three seeds in common: "
            "run them with the same --seed and --seeds"
        )
    errors = np.array(
        [[arm_errors[seed] for seed in seeds] for arm_errors in errors_by_arm.values()]
    )
    if not errors.mean(axis=1).all():
        raise CurateError(
            "an arm makes no error, and a law is of errors above 0: "
            "validate with harder test shards"
        )
    sizes, names = zip(*sizes_and_names.values(), strict=True)
    return ArmErrors(np.array(sizes), errors, list(names))


def _fit(
    catalog: Catalog, name: str, model: str, arms: str, arm_errors: ArmErrors, form: str
) -> Law:
    is_pareto = arms == "pareto"
    law, low, high = fit_arms(arm_errors.sizes, arm_errors.errors, pareto=is_pareto, form=form)
    if is_pareto:
        sizes, errors = envelope(arm_errors.sizes, arm_errors.errors)
    else:
        sizes, errors = arm_errors.sizes, arm_errors.errors.mean(axis=1)
    settings = {"model": model, "arms": arms, "form": form}
    fingerprint = provenance.fingerprint("fit", settings, str(arm_errors.errors.tolist()))
    with (
        catalog.record_run("fit", name, settings, fingerprint=fingerprint) as run_id,
        catalog.writing() as connection,
    ):
        record = FitRecord(
            fit=name,
            model=model,
            arms=arms,
            form=form,
            exponent=law.exponent,
            exponent_low=low,
            exponent_high=high,
            amplitude=law.amplitude,
            asymptote=law.asymptote,
            num_points=len(sizes),
            seeds=arm_errors.errors.shape[1],
            fingerprint=fingerprint,
            run_id=run_id,
        )
        sets.replace_set(connection, record)
        fitted_errors = law(np.asarray(sizes, float))
        for size, error, fitted in zip(sizes, errors, fitted_errors, strict=True):
            point = FitPointRecord(name, float(size), float(error), float(fitted))
            sets.insert_row(connection, "fit_points", point._asdict())
    log.info(
        "fit '%s': exponent %.3g (95%%: %.3g to %.3g), asymptote %.3g, %d sizes",
        name,
        law.exponent,
        low,
        high,
        law.asymptote,
        len(np.unique(sizes)),
    )
    return law


def _draw(
    catalog: Catalog,
    base_name: str,
    model: str,
    schedule: str,
    arm_errors: dict[str, ArmErrors],
    laws: dict[str, Law],
) -> None:
    folder = catalog.path / "figures"
    points: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for errors in arm_errors.values():
        for name in dict.fromkeys(errors.names):
            is_named = np.array([arm_name == name for arm_name in errors.names])
            points[name] = (errors.sizes[is_named], errors.errors[is_named].mean(axis=1))
    all_sizes = arm_errors["random"].sizes
    sizes = np.geomspace(all_sizes.min(), all_sizes.max(), 100)
    lines = {arms: (sizes, law(sizes)) for arms, law in laws.items()}
    charts.draw_scaling(folder / f"scaling-{base_name}", points, lines)
    gains = _load_gains(catalog, model, schedule)
    charts.draw_crossover(folder / f"crossover-{base_name}", gains)


def _load_gains(
    catalog: Catalog, model: str, schedule: str
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each kind of selection the corpus sizes, gains over random in points, and intervals."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select concat_ws(' ', strategy, pruned_vs_random.keep, 'by ' || metric), "
            "validations.num_samples, delta_vs_random, delta_vs_random_interval "
            "from pruned_vs_random join validations using (validation) "
            "join selections using (selection) "
            "left join scorings on scorings.scoring = selections.scoring "
            "where model = ? and schedule = ? and len(transfer) = 0 "
            "order by pruned_vs_random.keep desc, strategy desc, validations.num_samples",
            [model, schedule],
        ).fetchall()
    gains = {}
    for name in dict.fromkeys(row[0] for row in rows):
        columns = np.array([row[1:] for row in rows if row[0] == name], float).T
        gains[name] = (columns[0], columns[1], columns[2])
    return gains
