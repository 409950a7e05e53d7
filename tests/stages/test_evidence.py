"""Intervals over seeds and test samples, the one verdict, and the choice of the smallest."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from conftest import insert_training_run, insert_validation, rows

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.records import ComparisonRecord
from curate.stages.evidence.comparisons import make_record as make_comparison
from curate.stages.evidence.comparisons import (
    pack_answers,
    refresh_comparisons,
    to_difference,
    unpack_answers,
)
from curate.stages.evidence.intervals import (
    Difference,
    paired_difference,
    predicted_half_width,
)
from curate.stages.evidence.smallest import Candidate, choose
from curate.stages.evidence.verdicts import (
    BETTER,
    NO_LOSS,
    UNDECIDED,
    WORSE,
    decide,
    describe,
    read_verdicts,
    what_decides,
)


def answers(*texts: str) -> np.ndarray:
    return np.array([[letter == "1" for letter in text] for text in texts])


def test_the_interval_is_that_of_two_crossed_effects():
    a = answers("11110011", "11100111", "11110010")
    b = answers("11010011", "10010111", "11011010")
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(-0.083333, abs=1e-6)
    assert difference.variance == pytest.approx(0.034074, abs=1e-6)
    assert difference.freedom == pytest.approx(7.755387, abs=1e-6)
    assert difference.half_width() == pytest.approx(0.428017, abs=1e-6)
    assert paired_difference(b, a).mean == -difference.mean


def test_arms_that_never_differ_still_have_an_interval():
    none = np.zeros((3, 100), bool)
    assert paired_difference(none, none).half_width() == pytest.approx(0.027640, abs=1e-6)


def test_answers_are_packed_eight_per_byte():
    is_correct = np.arange(21) % 3 == 0
    packed = pack_answers(is_correct)
    assert len(packed) == 3
    assert (unpack_answers(packed, 21) == is_correct).all()


class World(NamedTuple):
    """Right answers of two arms with a difference that is known, by a logit model."""

    sample_effect: float  # spread over test samples of how much the second arm gains or loses
    seed_effect: float  # spread over seeds of an arm's logits
    shift: float  # of the second arm's logits

    def true_difference(self) -> float:
        """The difference in accuracy over all seeds and samples, by Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)

        def accuracy(mean: float, *effects: float) -> float:
            logits = mean + np.sqrt(np.square([2.5, self.seed_effect, *effects]).sum()) * nodes
            return float((weights / (1 + np.exp(-logits))).sum() / weights.sum())

        return accuracy(2 + self.shift, self.sample_effect) - accuracy(2)

    def draw(
        self, generator: np.random.Generator, seeds: int, num_test: int
    ) -> tuple[np.ndarray, np.ndarray]:
        a, b = self._probabilities(generator, seeds, num_test)
        return generator.random(a.shape) < a, generator.random(b.shape) < b

    def _probabilities(
        self, generator: np.random.Generator, seeds: int, num_test: int
    ) -> tuple[np.ndarray, np.ndarray]:
        easiness = generator.normal(2, 2.5, num_test)
        gain = self.shift + generator.normal(0, self.sample_effect, num_test)
        a, b = (generator.normal(0, self.seed_effect, (seeds, 1)) for _ in range(2))
        return 1 / (1 + np.exp(-(easiness + a))), 1 / (1 + np.exp(-(easiness + gain + b)))


WORLDS = [World(0.5, 0.05, -0.1), World(0.5, 0.2, -0.1), World(1.5, 0.05, 0.0), World(0.1, 0.2, 0)]


def measure_coverage(seeds: int, num_test: int, repetitions: int) -> float:
    """The share of simulated validations whose interval holds the true difference."""
    covered = 0
    for number, world in enumerate(WORLDS):
        truth, generator = world.true_difference(), np.random.default_rng(number)
        for _ in range(repetitions):
            difference = paired_difference(*world.draw(generator, seeds, num_test))
            covered += abs(difference.mean - truth) <= difference.half_width()
    return covered / (repetitions * len(WORLDS))


@pytest.mark.parametrize("seeds", [5, 20])
def test_about_95_of_100_intervals_hold_the_truth(seeds):
    # 400 validations: a standard deviation is 1.1 points.
    assert 0.92 < measure_coverage(seeds, 200, repetitions=100) < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("num_test", [100, 1_000, 10_000])
@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_93_to_97_of_100_intervals_hold_the_truth(seeds, num_test):
    """More of them with 100 test samples, of which too few differ: there the pseudo samples widen
    the intervals."""
    coverage = measure_coverage(seeds, num_test, repetitions=500)
    print(f"{seeds} seeds, {num_test:,} test samples: {100 * coverage:.1f} of 100")
    assert coverage >= 0.93
    assert coverage <= 0.97 or num_test == 100


def make_difference(
    mean: float, half_width: float, seeds: int = 5, num_test: int = 1000, freedom: float = 1e9
) -> Difference:
    """A difference in points with the half width given at 95%."""
    variance = (half_width / 1.959964) ** 2
    return Difference(mean, variance, freedom, seeds, num_test, variance * seeds, 0.0, 0.0)


@pytest.mark.parametrize(
    ("mean", "half_width", "word", "text"),
    [
        (0.5, 0.3, BETTER, "better, +0.50 ± 0.30 points"),
        (-0.1, 0.3, NO_LOSS, "no loss beyond 0.5 points, -0.10 ± 0.30"),
        (
            -0.2,
            0.1,
            NO_LOSS,
            "no loss beyond 0.5 points, -0.20 ± 0.10 (a loss, but a smaller one)",
        ),
        (-1.5, 0.3, WORSE, "worse by more than 0.5 points, -1.50 ± 0.30"),
        (
            -0.42,
            0.3,
            UNDECIDED,
            "undecided, -0.42 ± 0.30: about 71 seeds would decide, not 5",
        ),
    ],
)
def test_a_verdict_is_against_the_margin(catalog, mean, half_width, word, text):
    difference = make_difference(mean, half_width)
    with catalog.reading() as connection:
        assert decide(connection, difference, 0.5) == word
    assert describe(difference, word, 0.5) == text


@pytest.mark.parametrize(("seeds", "num_test"), [(2, 1000), (5, 99)])
@pytest.mark.parametrize("mean", [-50.0, 0.0, 50.0])
def test_few_seeds_or_test_samples_decide_nothing(catalog, seeds, num_test, mean):
    difference = make_difference(mean, 0.1, seeds, num_test)
    with catalog.reading() as connection:
        assert decide(connection, difference, 0.5) == UNDECIDED
    needed = "at least 3 seeds, not 2" if seeds == 2 else "at least 100 test samples, not 99"
    assert what_decides(difference, 0.5) == f"it takes {needed}"


def test_where_seeds_do_not_help_test_samples_are_asked_for():
    few_samples = Difference(-0.2, 0.1, 1e9, 5, 1000, 0.0, 0.1 * 1000, 0.0)
    assert predicted_half_width(few_samples, 100, 1000) == pytest.approx(
        few_samples.half_width(), rel=1e-6
    )
    assert "test samples would decide" in what_decides(few_samples, 0.5)
    assert "seeds" not in what_decides(few_samples, 0.5)
    at_the_margin = few_samples._replace(mean=-0.5)
    assert what_decides(at_the_margin, 0.5) == "it is too close to −0.5 to decide"


def add_runs(catalog: Catalog, accuracies: dict[str, list[float]], num_test: int = 1000) -> None:
    """A validation v of a selection s: for each arm an accuracy per seed."""
    with catalog.writing() as connection:
        insert_validation(connection, "v")
        for arm, values in accuracies.items():
            for seed, accuracy in enumerate(values):
                selection = None if arm == "full" else "s"
                insert_training_run(
                    connection, "v", arm, selection, seed, accuracy, num_test=num_test
                )
        refresh_comparisons(connection, "v")


def test_the_views_and_the_command_say_the_same(catalog):
    add_runs(
        catalog,
        {"full": [0.8, 0.8, 0.81], "pruned": [0.8, 0.801, 0.809], "random": [0.77, 0.78, 0.77]},
        num_test=10_000,
    )
    verdicts = read_verdicts(catalog, "v")
    assert [verdict.word for verdict in verdicts] == [NO_LOSS, BETTER]
    sql = "select baseline, verdict, difference, half_width from verdicts order by baseline"
    assert rows(catalog, sql) == [
        (
            verdict.comparison.baseline,
            verdict.word,
            verdict.comparison.difference,
            verdict.comparison.half_width,
        )
        for verdict in verdicts
    ]
    (row,) = curate.query(catalog, "from pruned_vs_random").to_pylist()
    assert (row["verdict_vs_full"], row["verdict_vs_random"]) == (NO_LOSS, BETTER)
    assert row["delta_vs_full"] == pytest.approx(0.0)
    assert row["delta_vs_random"] == pytest.approx(3.0)
    assert row["delta_vs_full_interval"] == verdicts[0].comparison.half_width
    assert all(len(line) <= 100 for verdict in verdicts for line in verdict.text.splitlines())


def test_a_selection_that_does_much_worse_than_random_is_an_alarm(catalog):
    add_runs(
        catalog,
        {"pruned": [0.20, 0.21, 0.19], "random": [0.75, 0.76, 0.75], "full": [0.80, 0.80, 0.81]},
    )
    against_full, against_random = read_verdicts(catalog, "v")
    assert not against_full.is_alarming
    assert against_random.is_alarming
    assert "Do not train on this one" in against_random.text


def test_half_a_validation_has_no_verdict_without_an_interval(catalog):
    add_runs(catalog, {"pruned": [0.7], "random": [0.75], "full": [0.80]})
    assert read_verdicts(catalog, "v") == []


def test_a_run_of_an_earlier_version_kept_no_answers_and_has_no_interval(catalog):
    add_runs(catalog, {"pruned": [0.7] * 3, "random": [0.75] * 3, "full": [0.80] * 3})
    with catalog.writing() as connection:
        connection.execute("update training_runs set correct = null")
        refresh_comparisons(connection, "v")
    assert read_verdicts(catalog, "v") == []
    (row,) = curate.query(catalog, "from pruned_vs_random").to_pylist()
    assert row["delta_vs_full"] == pytest.approx(-10.0)
    assert row["delta_vs_full_interval"] is None


def make_candidate(
    chain: str, keep: float, record: ComparisonRecord, validation: str = "v"
) -> Candidate:
    return Candidate(
        validation, f"{chain}-{keep}", keep, round(1000 * keep), 0.5, (validation, chain), [record]
    )


def make_record(mean: float, half_width: float = 0.2) -> ComparisonRecord:
    """A comparison with everything, in points, of a normal interval."""
    difference = make_difference(mean, half_width)
    empty = np.zeros((3, 100), bool)
    record = make_comparison("v", "s", "full", "test", empty, empty)
    return record._replace(
        difference=mean,
        half_width=half_width,
        variance=difference.variance,
        freedom=difference.freedom,
        seeds=5,
        num_test=1000,
    )


def test_a_chain_is_tested_from_its_largest_fraction_until_one_is_not_shown(catalog):
    chain = [
        make_candidate("hardest", 0.3, make_record(0.0)),  # lucky: never reached
        make_candidate("hardest", 0.8, make_record(0.0)),
        make_candidate("hardest", 0.5, make_record(-0.4)),
    ]
    with catalog.reading() as connection:
        choice = choose(connection, chain)
        assert (choice.candidate.selection, choice.is_shown) == ("hardest-0.8", True)
        assert choice.level == 0.95
        more = [make_candidate(f"other{index}", 0.9, make_record(-9.0)) for index in range(4)]
        choice = choose(connection, chain + more)
        assert choice.level == pytest.approx(0.99)
        assert choice.candidate.selection == "hardest-0.8"
        contradiction = make_candidate("hardest", 0.8, make_record(-2.0), validation="w")
        choice = choose(connection, [*chain, contradiction])
        assert not choice.is_shown


def simulate_choice(catalog: Catalog, num_chains: int, seeds: int, repetitions: int) -> float:
    """How often a selection is chosen where each truly loses just the margin or more."""
    world = World(0.5, 0.05, -0.1)
    margin = -100 * world.true_difference()  # so that the largest fraction is at the margin
    worse = [world, world._replace(shift=-0.13), world._replace(shift=-0.2)]
    generator, wrong = np.random.default_rng(0), 0
    with catalog.reading() as connection:
        for _ in range(repetitions):
            candidates = [
                make_candidate(
                    str(chain),
                    keep,
                    make_comparison(
                        "v", "s", "full", "test", *arm.draw(generator, seeds, num_test=500)
                    ),
                )
                for chain, (keep, arm) in itertools.product(
                    range(num_chains), zip((0.8, 0.5, 0.3), worse, strict=True)
                )
            ]
            wrong += choose(connection, candidates, margin).is_shown
    return wrong / repetitions


@pytest.mark.parametrize("num_chains", [1, 4])
def test_auto_chooses_wrongly_in_5_of_100_cases_at_most(catalog, num_chains):
    rate = simulate_choice(catalog, num_chains, seeds=5, repetitions=120)
    assert rate <= 0.08, "a standard deviation of 120 is 2 points"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize("num_chains", [1, 4])
def test_auto_is_wrong_at_most_5_times_in_100(catalog, num_chains, seeds):
    rate = simulate_choice(catalog, num_chains, seeds, repetitions=1000)
    print(f"{num_chains} kinds of selection, {seeds} seeds: wrong in {100 * rate:.1f} of 100")
    assert rate <= 0.05


def test_a_record_gives_back_its_difference():
    a = answers("11110011", "11100111", "11110010")
    record = make_comparison("v", "s", "full", "test", a, ~a)
    assert to_difference(record).half_width() == pytest.approx(record.half_width)
