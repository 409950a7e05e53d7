"""`curate fit`: how the test error falls with the number of training samples, at random and with the best pruning."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import charts, provenance, scaling, sets
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.progress import log

_LEAST = 4  # sizes; a law has three numbers


class Arms(NamedTuple):
    """Trainings of one model by arm: sizes int [arms], errors float [arms, seeds], and the arms' names."""

    sizes: np.ndarray
    errors: np.ndarray
    names: list[str]


def fit(catalog: Catalog | str | Path, *, model: str = "mlp", schedule: str = "epochs", form: str = "power") -> list[str]:
    """Fit the error of random samples, and of the Pareto envelope over initial sizes and keeps; return the fits' names.

    From all validations by the model, so compare selections within corpora of several sizes first (`--within`). The 95%
    intervals of the exponents are over seeds, by the jackknife, and the envelope's points are chosen and measured by
    different seeds. Draws figures/scaling-MODEL and figures/crossover-MODEL. Raises CurateError for fewer than 4 sizes or
    3 seeds.
    """
    if form not in scaling.FORMS:
        raise CurateError(f"--form {form}: choose one of {', '.join(scaling.FORMS)}")
    catalog = Catalog(catalog)
    everything = {arms: _arms(catalog, model, schedule, arms) for arms in ("random", "pareto")}
    base = model.replace(":", "-").replace("/", "-")
    suffix = "" if form == "power" else f"-{form}"
    found = {}
    for arms, points in everything.items():
        name = sets.check_name(f"{base}-{arms}{suffix}")
        if len(np.unique(points.sizes)) < _LEAST:
            raise CurateError(f"the validations by '{model}' ({schedule}) have fewer than {_LEAST} sizes: "
                              "compare more, within smaller selections (curate validate --within SELECTION)")  # fmt: skip
        found[name] = _fit(catalog, name, model, arms, points, form)
    _draw(catalog, f"{base}{suffix}", model, schedule, everything, found)
    return list(found)


def _arms(catalog: Catalog, model: str, schedule: str, arms: str) -> Arms:
    """The trainings: everything and random draws, and for pareto the selections too; seeds that all arms have.

    So many random samples are a corpus of that size of which everything is kept, so the envelope is over them as well.
    """
    with catalog.reading() as connection:
        rows = connection.execute(
            "select trainings.num_samples, trainings.seed, 1 - avg(accuracy), "
            "case arm when 'pruned' then concat_ws(' ', strategy, trainings.keep, 'by ' || metric) "
            "when 'full' then 'everything' else arm end as name, validation || coalesce(selection, '') || arm as key "
            "from trainings join validations using (validation) left join selections using (selection) "
            "left join scorings on scorings.scoring = selections.scoring "
            "where model = $1 and schedule = $2 and len(transfer) = 0 and arm in (select unnest($3)) "
            "group by all order by 1, key, 2",
            [model, schedule, ["full", "random"] if arms == "random" else ["full", "random", "pruned"]],
        ).fetchall()
    if not rows:
        raise CurateError(f"no validation by '{model}' ({schedule}) yet: make some with `curate validate --model {model}`")
    by_key: dict[str, dict[int, float]] = {}
    described = {}
    for size, seed, error, name, key in rows:
        by_key.setdefault(key, {})[seed] = error
        described[key] = (size, name)
    seeds = sorted(set.intersection(*(set(errors) for errors in by_key.values())))
    if len(seeds) < 3:
        raise CurateError("the validations have fewer than three seeds in common: run them with the same --seed and --seeds")
    errors = np.array([[found[seed] for seed in seeds] for found in by_key.values()])
    if not errors.mean(axis=1).all():
        raise CurateError("an arm makes no error, and a law is of errors above 0: validate with harder test shards")
    return Arms(np.array([described[key][0] for key in by_key]), errors, [described[key][1] for key in by_key])


def _fit(catalog: Catalog, name: str, model: str, arms: str, points: Arms, form: str) -> scaling.Law:
    pareto = arms == "pareto"
    interval = scaling.fit_arms(points.sizes, points.errors, pareto=pareto, form=form)
    law = interval.law
    sizes, errors = scaling.envelope(points.sizes, points.errors) if pareto else (points.sizes, points.errors.mean(axis=1))
    settings = {"model": model, "arms": arms, "form": form}
    fingerprint = provenance.fingerprint("fit", settings, str(points.errors.tolist()))
    with catalog.run("fit", name, settings, fingerprint=fingerprint) as run_id, catalog.writing() as connection:
        sets.replace(connection, "fit", "fit_points", {
            "fit": name, "model": model, "arms": arms, "form": form, "exponent": law.exponent, "exponent_low": interval.low,
            "exponent_high": interval.high, "amplitude": law.amplitude, "asymptote": law.asymptote, "num_points": len(sizes),
            "seeds": points.errors.shape[1], "fingerprint": fingerprint, "run_id": run_id,
        })  # fmt: skip
        connection.executemany("insert into fit_points values (?, ?, ?, ?)", [
            [name, float(size), float(error), float(fitted)]
            for size, error, fitted in zip(sizes, errors, law(np.asarray(sizes, float)), strict=True)
        ])  # fmt: skip
    log.info("fit '%s': exponent %.3g (95%%: %.3g to %.3g), asymptote %.3g, %d sizes", name, law.exponent, interval.low,
             interval.high, law.asymptote, len(np.unique(sizes)))  # fmt: skip
    return law


def _draw(
    catalog: Catalog, base: str, model: str, schedule: str, everything: dict[str, Arms], laws: dict[str, scaling.Law]
) -> None:  # fmt: skip
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for points in everything.values():
        for name in dict.fromkeys(points.names):
            chosen = np.array([other == name for other in points.names])
            shown[name] = (points.sizes[chosen], points.errors[chosen].mean(axis=1))
    sizes = everything["random"].sizes
    line = np.geomspace(sizes.min(), sizes.max(), 100)
    folder = catalog.path / "figures"
    charts.scaling(folder / f"scaling-{base}", shown, {arms: (line, law(line)) for arms, law in zip(everything, laws.values(),
                                                                                                   strict=True)})  # fmt: skip
    with catalog.reading() as connection:
        rows = connection.execute(
            "select concat_ws(' ', strategy, pruned_vs_random.keep, 'by ' || metric), validations.num_samples, "
            "over_random, over_random_interval "
            "from pruned_vs_random join validations using (validation) join selections using (selection) "
            "left join scorings on scorings.scoring = selections.scoring "
            "where model = ? and schedule = ? and len(transfer) = 0 "
            "order by pruned_vs_random.keep desc, strategy desc, validations.num_samples",
            [model, schedule],
        ).fetchall()
    lines = {
        name: np.array([row[1:] for row in rows if row[0] == name], float).T for name in dict.fromkeys(row[0] for row in rows)
    }
    charts.crossover(folder / f"crossover-{base}", {name: (found[0], found[1], found[2]) for name, found in lines.items()})
