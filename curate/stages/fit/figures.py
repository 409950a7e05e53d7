"""What the pictures of `curate fit` show, from the arms and their laws; charts.py draws it."""

from pathlib import Path

import numpy as np
from scipy import special

from curate.catalog.catalog import Catalog
from curate.package_data import read_sql
from curate.progress import log
from curate.stages.fit import charts
from curate.stages.fit.arms import FULL, PRUNED, RANDOM, Arm, group_by_kind
from curate.stages.fit.charts import Points
from curate.stages.fit.laws import ModelLaws
from curate.stages.fit.scaling_laws import CONFIDENCE

_SAME_WORK = 1.1  # arms of equal iterations differ by less in presentations


def draw_laws(catalog: Catalog, name: str, laws: ModelLaws) -> None:
    """Points and fitted lines: figures/scaling-NAME."""
    points: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    arms = laws.pareto.arms  # all of them
    for label in dict.fromkeys(arms.names):
        has_label = np.array([arm_label == label for arm_label in arms.names])
        points[label] = (arms.sizes[has_label], arms.errors[has_label].mean(axis=1))
    sizes = np.geomspace(arms.sizes.min(), arms.sizes.max(), 100)
    lines = {
        "random": (sizes, laws.random.fitted.law(sizes)),
        "pareto": (sizes, laws.pareto.fitted.law(sizes)),
    }
    path = _figure(catalog, "scaling", name)
    charts.draw_scaling(path, points, lines)
    _log_drawn([path])


def draw_arms(catalog: Catalog, name: str, arms: list[Arm]) -> None:
    """The pictures that need no law, each where the catalog has the data for it.

    figures/crossover-NAME from corpora of several sizes; metrics-NAME and classes-NAME of the
    largest corpus; compute-NAME where the arms differ in the samples that they were shown.
    """
    largest = max(arm.corpus_size for arm in arms)
    in_largest = [arm for arm in arms if arm.corpus_size == largest]
    paths = []
    if len({arm.corpus_size for arm in arms}) > 1 and group_by_kind(arms):
        paths.append(_figure(catalog, "crossover", name))
        charts.draw_crossover(paths[-1], _load_gains(arms))
    panels = _accuracies_by_keep(in_largest)
    num_points = sum(len(line.x) for lines in panels.values() for line in lines.values())
    if num_points > 1 and any(arm.name == FULL for arm in in_largest):
        paths.append(_figure(catalog, "metrics", name))
        charts.draw_metrics(paths[-1], panels, *_baselines(in_largest))
    presentations = [arm.presentations for arm in arms]
    if max(presentations) > _SAME_WORK * min(presentations):
        paths.append(_figure(catalog, "compute", name))
        charts.draw_compute(paths[-1], _accuracies_by_compute(arms))
    rows, classes, gains = _load_class_gains(catalog, in_largest)
    if len(classes) > 1:
        paths.append(_figure(catalog, "classes", name))
        charts.draw_classes(paths[-1], rows, classes, gains)
    _log_drawn(paths)


def _figure(catalog: Catalog, kind: str, name: str) -> Path:
    return catalog.path / "figures" / f"{kind}-{name}"


def _log_drawn(paths: list[Path]) -> None:
    for path in paths:
        log.info("drew %s.png, and the same as SVG", path)


def _interval(values: np.ndarray) -> float:
    """Half the width of Student's t interval of a mean over seeds, [seeds]."""
    quantile = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


def _make_points(pairs: list[tuple[float, np.ndarray]]) -> Points:
    """From (x, values in points [seeds])."""
    ordered = sorted(pairs, key=lambda pair: pair[0])
    return Points(
        np.array([x for x, _ in ordered], float),
        np.array([values.mean() for _, values in ordered]),
        np.array([_interval(values) for _, values in ordered]),
    )


def _accuracies(arm: Arm) -> np.ndarray:
    """In percent, [seeds]."""
    return 100 * (1 - arm.errors)


def _load_gains(arms: list[Arm]) -> dict[str, Points]:
    """For each kind of selection its gain over random, in points, against the corpus' size."""
    random = {(arm.validation, arm.selection): arm for arm in arms if arm.name == RANDOM}
    compared = [arm for arm in arms if (arm.validation, arm.selection) in random]
    gains = {}
    for kind, group in group_by_kind(compared).items():
        gains[str(kind)] = _make_points(
            [
                (
                    arm.corpus_size,
                    100 * (random[arm.validation, arm.selection].errors - arm.errors),
                )
                for arm in group
            ]
        )
    return gains


def _accuracies_by_keep(arms: list[Arm]) -> dict[str, dict[str, Points]]:
    """For each strategy and metric the accuracies, against the fraction kept.

    Options of a strategy make a line of their own.
    """
    pairs: dict[str, dict[str, list[tuple[float, np.ndarray]]]] = {}
    for kind, group in group_by_kind(arms).items():
        lines = pairs.setdefault(kind.strategy, {})
        options = f" ({kind.options})" if kind.options else ""
        line = lines.setdefault(f"{kind.metric or 'no metric'}{options}", [])
        line += [(kind.keep, _accuracies(arm)) for arm in group]
    return {
        strategy: {metric: _make_points(lines[metric]) for metric in sorted(lines)}
        for strategy, lines in sorted(pairs.items(), reverse=True)
    }


def _baselines(arms: list[Arm]) -> tuple[Points, float]:
    """The accuracies of random samples against the fraction kept, and that of everything."""
    by_keep: dict[float, list[np.ndarray]] = {}
    for arm in arms:
        if arm.name == RANDOM and arm.kind:
            by_keep.setdefault(arm.kind.keep, []).append(_accuracies(arm))
    random = [(keep, np.mean(values, axis=0)) for keep, values in by_keep.items()]
    everything = [_accuracies(arm).mean() for arm in arms if arm.name == FULL]
    return _make_points(random), float(np.mean(everything))


def _accuracies_by_compute(arms: list[Arm]) -> dict[str, Points]:
    """For each kind of arm the accuracies, against the samples that a model was shown."""
    pairs: dict[str, list[tuple[float, np.ndarray]]] = {}
    for arm in arms:
        pairs.setdefault(arm.label, []).append((arm.presentations, _accuracies(arm)))
    return {label: _make_points(pairs[label]) for label in sorted(pairs)}


def _load_class_gains(catalog: Catalog, arms: list[Arm]) -> tuple[list[str], list[str], np.ndarray]:
    """Kinds of selection, classes (those that are right most often first), and what each kind gains
    over random in each class, in points [kinds, classes].
    """
    kinds = {arm.selection: str(arm.kind) for arm in arms if arm.name == PRUNED and arm.kind}
    validations = sorted({arm.validation for arm in arms})
    with catalog.reading() as connection:
        rows = connection.execute(
            read_sql("stages/fit_classes"), {"validations": validations}
        ).fetchall()
    rows = [row for row in rows if row[0] in kinds]
    accuracies = {label: full for _, label, _, _, full in rows}
    classes = sorted(accuracies, key=lambda label: -accuracies[label])
    names = sorted(set(kinds.values()))
    gains = np.full((len(names), len(classes)), np.nan)
    for selection, label, pruned, random, _ in rows:
        gains[names.index(kinds[selection]), classes.index(label)] = pruned - random
    return names, classes, gains
