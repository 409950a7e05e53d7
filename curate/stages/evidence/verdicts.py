"""The verdict on a comparison, and how it is said.

The words are those of the SQL macro `verdict` (catalog/views.sql), which the command line, the
report, `--keep auto` and anybody's query use alike: better, no loss beyond the margin, worse,
undecided.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curate.catalog.catalog import Catalog
from curate.catalog.records import ComparisonRecord
from curate.stages.evidence.comparisons import (
    FULL,
    RANDOM,
    UNREPEATED,
    UNWEIGHTED,
    load_comparisons,
    to_difference,
)
from curate.stages.evidence.intervals import LEVEL, Difference, predicted_half_width
from curate.stages.staleness import find_stale

if TYPE_CHECKING:
    import duckdb

BETTER, NO_LOSS, WORSE, UNDECIDED = "better", "no loss beyond the margin", "worse", "undecided"
# Below these nothing is decided, whatever the interval; the macro has the same numbers.
MIN_SEEDS, MIN_TEST_SAMPLES = 3, 100
ALARMING_LOSS = 2.0  # points below random
_MAX_SEEDS, _MAX_TEST_SAMPLES = 100, 1_000_000  # more than these is no advice
_LINE_WIDTH = 100
_BASELINE_WORDS = {FULL: "everything", RANDOM: "random", UNREPEATED: "the same without repeats"}


class Verdict(NamedTuple):
    """What a comparison says of a selection; `is_alarming` where random does much better.

    `word` is one of the four, `summary` has its number, `text` the selection too.
    """

    comparison: ComparisonRecord
    margin: float
    word: str
    summary: str
    text: str
    is_alarming: bool


def decide(
    connection: "duckdb.DuckDBPyConnection",
    difference: Difference,
    margin: float,
    level: float = LEVEL,
) -> str:
    """One of the four words, for a difference in points with the interval of `level`."""
    values = [
        difference.mean,
        difference.half_width(level),
        margin,
        difference.seeds,
        difference.num_test,
    ]
    ((word,),) = connection.execute("select verdict(?, ?, ?, ?, ?)", values).fetchall()
    return str(word)


def read_verdicts(
    catalog: Catalog | str | Path, validation: str, margin: float | None = None
) -> list[Verdict]:
    """What a validation says: for each selection and test set against everything, then random.

    Then, where it was trained with weights too, of these against none.
    """
    stale = find_stale(Catalog(catalog), by_selections=False)
    with Catalog(catalog).reading() as connection:
        comparisons = load_comparisons(connection, validation)
        ((tolerance, num_tests),) = connection.execute(
            "select any_value(tolerance), count(distinct training_runs.test) "
            "from validations join training_runs using (validation) where validation = ?",
            [validation],
        ).fetchall()
        replaced = connection.execute(
            "select distinct training_runs.selection from training_runs "
            "left join selections using (selection) "
            "where validation = ? and arm = 'pruned' "
            "and training_runs.selection_fingerprint is distinct from selections.fingerprint",
            [validation],
        ).fetchall()
        chosen_margin = tolerance if margin is None else margin
        words = [
            decide(connection, to_difference(comparison), chosen_margin)
            for comparison in comparisons
        ]
    replaced_names = {name for (name,) in replaced}

    def find_problem(selection: str) -> str | None:
        if selection in replaced_names:
            return "the selection was made anew since: validate it again"
        for key in (("validation", validation), ("selection", selection)):
            if key in stale:
                return f"out of date, the {key[0]} was made {stale[key]}"
        return None

    return [
        _make_verdict(
            comparison,
            word,
            chosen_margin,
            has_several_tests=num_tests > 1,
            problem=find_problem(comparison.selection),
        )
        for comparison, word in zip(comparisons, words, strict=True)
    ]


def _make_verdict(
    comparison: ComparisonRecord,
    word: str,
    margin: float,
    *,
    has_several_tests: bool = False,
    problem: str | None = None,
) -> Verdict:
    if comparison.baseline == UNWEIGHTED:
        subject = f"{comparison.selection} with weights against without"
    else:
        subject = f"{comparison.selection} against {_BASELINE_WORDS[comparison.baseline]}"
    if has_several_tests:
        subject += f" on {comparison.test}"
    summary = text = describe(to_difference(comparison), word, margin)
    if comparison.baseline == FULL:
        text = f"{comparison.accuracy:.1f}% right, {text}"
    if problem:
        text += f"; {problem}"
    is_alarming = (
        comparison.baseline == RANDOM
        and word != UNDECIDED
        and comparison.difference + comparison.half_width < -ALARMING_LOSS
    )
    if is_alarming:
        text += ". Do not train on this one: random samples do much better"
    separator = ": " if len(subject) + len(text) + 2 <= _LINE_WIDTH else ":\n    "
    return Verdict(comparison, margin, word, summary, f"{subject}{separator}{text}", is_alarming)


def describe(difference: Difference, word: str, margin: float, level: float = LEVEL) -> str:
    """A verdict with its number, in words: 'no loss beyond 0.5 points, −0.08 ± 0.35'."""
    half_width = difference.half_width(level)
    number = f"{difference.mean:+.2f} ± {half_width:.2f}"
    if word == NO_LOSS:
        text = f"no loss beyond {_points(margin)}, {number}"
        if difference.mean + half_width < 0:
            text += " (a loss, but a smaller one)"
        return text
    if word == WORSE:
        return f"worse by more than {_points(margin)}, {number}"
    if word == UNDECIDED:
        return f"undecided, {number}: {what_decides(difference, margin, level)}"
    return f"{word}, {number} points"


def _points(margin: float) -> str:
    return f"{margin:g} point" if margin == 1 else f"{margin:g} points"


def what_decides(difference: Difference, margin: float, level: float = LEVEL) -> str:
    """How many more seeds or test samples would decide, if the difference is what it seems.

    By the components of the variance: more seeds do not help against a small test set, nor more
    test samples against few seeds.
    """
    needs = []
    if difference.num_test < MIN_TEST_SAMPLES:
        needs.append(f"at least {MIN_TEST_SAMPLES} test samples, not {difference.num_test}")
    if difference.seeds < MIN_SEEDS:
        needs.append(f"at least {MIN_SEEDS} seeds, not {difference.seeds}")
    if needs:
        return f"it takes {' and '.join(needs)}"
    needed_half_width = abs(difference.mean + margin)
    seeds, num_test = difference.seeds, difference.num_test

    def is_enough(num_seeds: int, num_samples: int) -> bool:
        return predicted_half_width(difference, num_seeds, num_samples, level) < needed_half_width

    more_seeds = [count for count in range(seeds + 1, _MAX_SEEDS + 1) if is_enough(count, num_test)]
    if more_seeds:
        return f"about {more_seeds[0]} seeds would decide, not {seeds}"
    samples = num_test
    for count in (seeds, 2 * seeds, 4 * seeds):
        samples = num_test
        while samples <= _MAX_TEST_SAMPLES:
            samples = math.ceil(samples * 1.1)
            if is_enough(count, samples):
                with_seeds = f" and {count} seeds" if count > seeds else ""
                return f"about {_round_up(samples):,} test samples{with_seeds} would decide"
    return f"it is too close to −{margin:g} to decide"


def _round_up(count: int) -> int:
    """To two digits."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit
