"""`curate advise`: how much of a corpus to keep, and which side, for a budget of training."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.options import Option, verb
from curate.progress import log
from curate.stages.fit.arms import RunFilter, SelectionKind
from curate.stages.fit.decay import DecayFit, DecayLaw, Switch, find_switches, fit_decay
from curate.stages.fit.laws import ArmLaw, ModelLaws, fit_laws
from curate.stages.fit.scaling_laws import MIN_SIZES, jackknife_half_width
from curate.stages.fit.stage import FitEpochs, Form, Scorings, Strategies, as_list

_LONGEST_HALF_LIFE = 100  # times; beyond, what is lost cannot be told from nothing
_MAX_FACTOR = 10.0  # beyond the sizes of the fit, without --extrapolate
# Beyond the sizes of a fit the asymptote decides, and of that the errors say least.
_OTHER_FORM = {"power": "pure-power", "pure-power": "power", "exponential": "power"}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(epochs?)?")


class Budget(NamedTuple):
    """So many samples to train on, or the compute of so many epochs of the whole corpus."""

    text: str
    amount: float
    is_epochs: bool

    def max_samples(self, num_samples: int, epochs: int) -> int:
        """How many of `num_samples` can be trained on for `epochs` epochs."""
        if self.is_epochs:
            return min(int(num_samples * self.amount / epochs), num_samples)
        return min(int(self.amount), num_samples)


def parse_budget(value: str | int) -> Budget:
    """`25000`, or `4epochs` of the whole corpus. Raises OptionError."""
    text = str(value)
    match = _BUDGET.fullmatch(text.replace(" ", "").replace(",", ""))
    if not match or (not match[2] and float(match[1]) < 1) or not float(match[1]):
        raise OptionError(
            f"--budget {text}: give samples to train on, such as 25000, "
            "or epochs of the whole corpus, such as 4epochs"
        )
    return Budget(text, float(match[1]), bool(match[2]))


@dataclass(frozen=True)
class Advice:
    """What a law predicts for one way to spend a budget.

    Errors are shares of the test samples, with the half widths of their 95% intervals over seeds.
    The gain is over as many random samples as the budget allows; the intervals of all gains of a
    budget together hold the truth in 95 of 100 cases. `beyond_fit` is by what factor `num_samples`
    is above the largest size of the law's fit, or below the least; 1 within them. `epochs` are how
    often the samples are seen, and `decay` what the next time is worth of the time before, with its
    interval; None where the laws are of equal epochs.
    """

    budget: str
    arm: str  # everything, random, or a kind of selection
    num_samples: int
    error: float
    error_interval: float
    gain: float | None
    gain_interval: float | None
    least_fitted: int
    largest_fitted: int
    beyond_fit: float
    is_advised: bool
    epochs: float | None = None
    decay: float | None = None
    decay_interval: float | None = None


@verb()
def advise(
    catalog: Catalog | str | Path,
    *,
    budget: Annotated[
        list[str] | str | int,
        Option(
            "What can be trained on: samples (25000), or the compute of epochs of the whole corpus "
            "(4epochs); repeatable.",
            metavar="SAMPLES|EPOCHS",
            check=parse_budget,
        ),
    ],
    samples: Annotated[
        int | None,
        Option(
            "Initial size of the corpus, before pruning.",
            minimum=1,
            default="the samples in the catalog",
        ),
    ] = None,
    extrapolate: Annotated[
        bool, Option("Predict beyond 10 times the sizes that the laws were fitted to.")
    ] = False,
    model: Annotated[str, Option("Validations by this model.")] = "mlp",
    epochs: FitEpochs = None,
    form: Form = "power",
    scoring: Scorings = None,
    strategy: Strategies = None,
) -> list[Advice]:
    """What to keep of a corpus of `samples` when only so much can be trained on.

    From the laws of `curate fit`, fitted anew to the validations with equal epochs: that of random
    samples, and that of each kind of selection (strategy with its options, keep and metric) that
    leaves no more than the budget. A kind is advised where the interval of its gain over random
    samples is above 0; beyond the sizes of the fit, only where it is so with an asymptote and
    without. Else random samples are advised, or everything where the budget is enough for it. The
    intervals cover chance between seeds, not that errors may leave the law. Raises CurateError
    beyond 10 times the sizes of the fit, unless told to `extrapolate`.

    Where a corpus was validated with three numbers of epochs or more (`curate validate --epochs`),
    and none is given here, budgets in epochs are spent on one part of the corpus for as long as
    they last. From the training runs follows what a sample is worth when it is seen again, for each
    kind of selection, and from how many epochs on a larger, easier part is better than a smaller
    one that is seen more often: both are said. Gains are then over everything.
    """
    catalog = Catalog(catalog)
    budgets = [parse_budget(value) for value in _as_values(budget)]
    runs = RunFilter(model, "epochs", epochs, tuple(as_list(scoring)), tuple(as_list(strategy)))
    if epochs is None and all(parsed.is_epochs for parsed in budgets):
        decay_fit = fit_decay(catalog, runs)
        if decay_fit:
            num_samples = samples or _count_samples(catalog)
            return _advise_by_decay(decay_fit, budgets, num_samples, extrapolate=extrapolate)
    laws = fit_laws(catalog, runs, form)
    if not laws.kinds:
        raise CurateError(
            f"no kind of selection was compared within corpora of {MIN_SIZES[form]} sizes by "
            f"'{model}', and there are {len(laws.corpus_sizes)}: compare it within more "
            "(curate validate --within SELECTION --keep F)"
        )
    other_laws: ModelLaws | None = None
    num_samples = samples or _count_samples(catalog)
    advice: list[Advice] = []
    for parsed_budget in budgets:
        max_samples = parsed_budget.max_samples(num_samples, laws.epochs)
        if not max_samples:
            raise OptionError(f"--budget {parsed_budget.text}: that is less than one sample")
        _check_range(laws.random, max_samples, extrapolate=extrapolate)
        rows = _predict_rows(laws, parsed_budget, num_samples, max_samples, extrapolate=extrapolate)
        agreed = {row.arm for row in rows}
        if max(row.beyond_fit for row in rows) > 1:
            other_laws = other_laws or fit_laws(catalog, runs, _OTHER_FORM[form])
            other_rows = _predict_rows(
                other_laws, parsed_budget, num_samples, max_samples, extrapolate=True
            )
            agreed = {row.arm for row in other_rows if _is_shown_better(row)}
        ranked = _rank(rows, agreed)
        _log_advice(ranked, num_samples, agreed, form)
        advice += ranked
    return advice


def _as_values(budget: list[str] | str | int) -> list[str | int]:
    return [*budget] if isinstance(budget, list) else [budget]


def _count_samples(catalog: Catalog) -> int:
    with catalog.reading() as connection:
        ((count,),) = connection.execute("select count(*) from samples").fetchall()
    return int(count)


def _predict_rows(
    laws: ModelLaws, budget: Budget, num_samples: int, max_samples: int, *, extrapolate: bool
) -> list[Advice]:
    """Every way to spend a budget: at random, or everything; then the kinds of selection."""
    baseline = _predict(laws.random, max_samples)
    baseline_row = Advice(
        budget=budget.text,
        arm="everything" if max_samples == num_samples else "random",
        num_samples=max_samples,
        error=float(baseline[0]),
        error_interval=jackknife_half_width(baseline[1:]),
        gain=None,
        gain_interval=None,
        least_fitted=int(laws.random.arms.sizes.min()),
        largest_fitted=int(laws.random.arms.sizes.max()),
        beyond_fit=_beyond_fit(laws.random, max_samples),
        is_advised=False,
    )
    kinds = _affordable_kinds(laws, num_samples, max_samples, extrapolate=extrapolate)
    rows = [baseline_row]
    for kind, num_kept in kinds.items():
        law = laws.kinds[kind]
        errors = _predict(law, num_kept)
        gains = baseline - errors
        row = Advice(
            budget=budget.text,
            arm=str(kind),
            num_samples=num_kept,
            error=float(errors[0]),
            error_interval=jackknife_half_width(errors[1:]),
            gain=float(gains[0]),
            gain_interval=jackknife_half_width(gains[1:], num_comparisons=len(kinds)),
            least_fitted=int(law.arms.sizes.min()),
            largest_fitted=int(law.arms.sizes.max()),
            beyond_fit=_beyond_fit(law, num_kept),
            is_advised=False,
        )
        rows.append(row)
    return rows


def _advise_by_decay(
    fit: DecayFit, budgets: list[Budget], num_samples: int, *, extrapolate: bool
) -> list[Advice]:
    """Each part of the corpus, seen as often as a budget allows."""
    _log_decays(fit)
    for switch in find_switches(fit):
        log.info("%s", _describe_switch(switch))
    advice: list[Advice] = []
    for budget in budgets:
        rows = [
            _predict_by_decay(fit, number, budget, num_samples) for number in range(len(fit.kinds))
        ]
        if rows[0].beyond_fit > _MAX_FACTOR and not extrapolate:
            raise CurateError(
                f"{budget.text} are {rows[0].beyond_fit:,.0f} times beyond what was trained: "
                "validate with numbers of --epochs nearer to it, or take the risk with "
                "--extrapolate"
            )
        if not extrapolate:
            rows = [row for row in rows if row.beyond_fit <= _MAX_FACTOR]
        ranked = _rank(rows, {row.arm for row in rows})
        _log_advice(ranked, num_samples, {row.arm for row in rows}, "power")
        advice += ranked
    return advice


def _predict_by_decay(fit: DecayFit, number: int, budget: Budget, num_samples: int) -> Advice:
    kind = fit.kinds[number]
    is_of_kind = fit.kind_numbers == number
    num_kept = round((kind.keep if kind else 1.0) * num_samples)
    epochs = budget.amount * num_samples / num_kept
    fitted = fit.epochs[is_of_kind]

    def errors_of(which: int, count: int, times: float) -> np.ndarray:
        arguments = (np.array([which]), np.array([float(count)]), np.array([times]))
        return np.array([float(law(*arguments)[0]) for law in (fit.law, *fit.without_seed)])

    errors = errors_of(number, num_kept, epochs)
    gains = errors_of(0, num_samples, budget.amount) - errors
    sizes = fit.sizes[is_of_kind]
    factors = (epochs / fitted.max(), fitted.min() / epochs, num_kept / sizes.max(), 1.0)
    decays = _decays_of(fit, number)
    return Advice(
        budget=budget.text,
        arm=str(kind) if kind else "everything",
        num_samples=num_kept,
        error=float(errors[0]),
        error_interval=jackknife_half_width(errors[1:]),
        gain=float(gains[0]) if kind else None,
        gain_interval=(
            jackknife_half_width(gains[1:], num_comparisons=len(fit.kinds) - 1) if kind else None
        ),
        least_fitted=int(sizes.min()),
        largest_fitted=int(sizes.max()),
        beyond_fit=float(max(factors)),
        is_advised=False,
        epochs=epochs,
        decay=float(decays[0]),
        decay_interval=jackknife_half_width(decays[1:]),
    )


def _decays_of(fit: DecayFit, number: int) -> np.ndarray:
    """The decay of a kind by the law, and by the laws without each seed in turn: [1 + seeds]."""
    laws: list[DecayLaw] = [fit.law, *fit.without_seed]
    return np.array([law.decays[number] for law in laws])


def _log_decays(fit: DecayFit) -> None:
    """What seeing a sample again is worth of the time before, by kind."""
    for number, kind in enumerate(fit.kinds):
        decays = _decays_of(fit, number)
        half_life = np.log(0.5) / np.log(max(decays[0], 1e-9))
        log.info(
            "%s: seen again, a sample is worth %.2f ± %.2f of the time before%s",
            kind or "everything and random samples",
            decays[0],
            jackknife_half_width(decays[1:]),
            f", half after {half_life:.1f} times" if half_life < _LONGEST_HALF_LIFE else "",
        )
    log.info("the law misses the errors by %.1f%% of them", 100 * fit.relative_misfit)


def _describe_switch(switch: Switch) -> str:
    larger = str(switch.larger or "everything")
    if switch.epochs is None:
        better, worse = (
            (larger, switch.smaller) if switch.is_larger_better else (switch.smaller, larger)
        )
        return (
            f"{better} is better than {worse} at all budgets of {switch.least:.3g} to "
            f"{switch.most:.3g} epochs"
        )
    sure = "not sure"
    if switch.half_factor is not None:
        low, high = switch.epochs / switch.half_factor, switch.epochs * switch.half_factor
        sure = f"{low:.2g} to {high:.2g}"
    return (
        f"from {switch.epochs:.2g} epochs of the whole corpus on ({sure}), {larger} is better than "
        f"{switch.smaller}"
    )


def _rank(rows: list[Advice], agreed: set[str]) -> list[Advice]:
    """That which is advised first, then by the predicted error; `agreed` are arms that may be."""
    by_error = sorted(rows, key=lambda row: row.error)
    baseline = rows[0]
    best = next((row for row in by_error if _is_shown_better(row) and row.arm in agreed), baseline)
    return [replace(best, is_advised=True), *(row for row in by_error if row is not best)]


def _predict(law: ArmLaw, num_samples: int) -> np.ndarray:
    """The error at a size by the law, and by the laws without each seed in turn: [1 + seeds]."""
    size = np.array([float(num_samples)])
    every_law = [law.fitted.law, *law.fitted.without_seed]
    return np.array([float(law(size)[0]) for law in every_law])


def _beyond_fit(law: ArmLaw, num_samples: int) -> float:
    """By what factor a size is outside those of the fit; 1 within them."""
    least, largest = law.arms.sizes.min(), law.arms.sizes.max()
    return float(max(num_samples / largest, least / num_samples, 1.0))


def _check_range(law: ArmLaw, num_samples: int, *, extrapolate: bool) -> None:
    factor = _beyond_fit(law, num_samples)
    if factor > _MAX_FACTOR and not extrapolate:
        raise CurateError(
            f"{num_samples:,} samples are {factor:,.0f} times beyond the sizes of the fit "
            f"({law.arms.sizes.min():,} to {law.arms.sizes.max():,}), and no law is sure to go so "
            "far: validate within corpora nearer to it, or take the risk with --extrapolate"
        )


def _affordable_kinds(
    laws: ModelLaws, num_samples: int, max_samples: int, *, extrapolate: bool
) -> dict[SelectionKind, int]:
    """The kinds of selection that leave no more than the budget, with how many they keep."""
    kinds = {}
    for kind, law in laws.kinds.items():
        num_kept = round(kind.keep * num_samples)
        if not 1 <= num_kept <= max_samples:
            continue
        factor = _beyond_fit(law, num_kept)
        if factor > _MAX_FACTOR and not extrapolate:
            log.info("left out: %s, %.0f times beyond the sizes of its fit", kind, factor)
            continue
        kinds[kind] = num_kept
    return kinds


def _is_shown_better(row: Advice) -> bool:
    return row.gain is not None and row.gain > (row.gain_interval or 0.0)


def _log_advice(rows: list[Advice], num_samples: int, agreed: set[str], form: str) -> None:
    """One line for what is advised, and one where the law is used beyond its sizes."""
    advised, kinds = rows[0], [row for row in rows[1:] if row.gain is not None]
    wrong = f"{100 * advised.error:.1f} ± {100 * advised.error_interval:.1f}% wrong"
    if advised.gain is not None:
        reason = (
            f"{_format_gain(advised)} over {'random' if advised.epochs is None else 'everything'}"
        )
    elif kinds:
        reason = f"{kinds[0].arm}: {_format_gain(kinds[0])}"
    else:
        reason = "no selection that was compared is so small"
    log.info(
        "%s: %s (%s of %s), %s; %s",
        advised.budget,
        advised.arm,
        f"{advised.num_samples:,}",
        f"{num_samples:,}",
        wrong,
        reason,
    )
    factor = max(row.beyond_fit for row in rows)
    if factor > 1:
        doubted = [row for row in kinds if _is_shown_better(row) and row.arm not in agreed]
        log.warning(
            "%s: up to %.3g times beyond the sizes of the fit%s",
            advised.budget,
            factor,
            f"; {doubted[0].arm} gains by --form {form} only" if doubted else "",
        )


def _format_gain(row: Advice) -> str:
    return f"{100 * (row.gain or 0.0):+.1f} ± {100 * (row.gain_interval or 0.0):.1f}"
