import json

import numpy as np
import pytest
from conftest import insert_validation, run_curate
from corpora import add_validations, insert_runs, make_scoring, make_selection

import curate
from curate.catalog import sets
from curate.errors import CurateError, OptionError


def random_law(num_samples):
    return 3 * num_samples**-0.5


# Better than random from 1,000 kept samples on, and worse below.
HARD = {("hardest", keep): lambda n: 3 * 1000**0.2 * n**-0.7 for keep in (0.5, 0.2)}
EASY = {("easiest", 0.2): lambda n: 3 * 1000**-0.2 * n**-0.3}


@pytest.fixture
def compared(catalog):
    """A catalog where hard samples win on large corpora, and easy ones on small corpora."""
    add_validations(catalog, random_law, HARD | EASY)
    return catalog


def test_much_data_means_hard_samples_and_little_easy_ones(compared):
    rows = curate.advise(compared, budget=10_000, samples=50_000, form="pure-power")
    best = rows[0]
    assert (best.arm, best.num_samples, best.is_advised) == ("hardest 0.2 by el2n", 10_000, True)
    true_gain = random_law(10_000) - HARD["hardest", 0.2](10_000)
    assert best.gain == pytest.approx(true_gain, abs=best.gain_interval)
    assert [row.is_advised for row in rows[1:]] == [False] * 2
    assert {row.arm for row in rows[1:]} == {"random", "easiest 0.2 by el2n"}, "half is too much"
    few = curate.advise(compared, budget=200, samples=1000, form="pure-power")
    assert few[0].arm == "easiest 0.2 by el2n"


def test_a_budget_in_epochs_is_one_of_compute(compared):
    half, all_of_it = (
        curate.advise(compared, budget=f"{epochs}epochs", samples=50_000, form="pure-power")
        for epochs in (5, 10)
    )
    assert {row.arm: row.num_samples for row in half} == {
        "hardest 0.5 by el2n": 25_000,
        "random": 25_000,
        "hardest 0.2 by el2n": 10_000,
        "easiest 0.2 by el2n": 10_000,
    }, "validations train for ten epochs"
    assert "everything" in {row.arm for row in all_of_it}


def test_where_nothing_is_shown_to_be_better_random_samples_are_advised(catalog, caplog):
    kinds = {("hardest", 0.5): lambda n: 0.999 * random_law(n)}
    add_validations(catalog, random_law, kinds, noise=0.02)
    with caplog.at_level("INFO", "curate"):
        rows = curate.advise(catalog, budget=5000, samples=10_000, form="pure-power")
    assert [row.arm for row in rows] == ["random", "hardest 0.5 by el2n"]
    assert rows[0].is_advised
    assert "5000: random (5,000 of 10,000), " in caplog.text
    assert "% wrong; hardest 0.5 by el2n: " in caplog.text


def test_far_beyond_the_fit_is_refused_unless_told(compared, caplog):
    options = {"form": "pure-power", "samples": 10_000_000}
    with caplog.at_level("INFO", "curate"):
        near = curate.advise(compared, budget=100_000, samples=200_000, form="pure-power")
    assert near[0].beyond_fit == pytest.approx(4)  # 100,000 kept; of 50,000 half were
    assert "up to 4 times beyond the sizes of the fit" in caplog.text
    with pytest.raises(
        CurateError, match=r"1,000,000 samples are 20 times beyond .* \(100 to 50,000\).*--extrap"
    ):
        curate.advise(compared, budget=1_000_000, **options)
    with caplog.at_level("INFO", "curate"):
        far = curate.advise(compared, budget=2_000_000, extrapolate=True, **options)
    assert far[0].arm == "hardest 0.2 by el2n"
    assert far[0].beyond_fit == pytest.approx(200)
    assert "up to 200 times beyond the sizes of the fit" in caplog.text


def test_beyond_the_fit_a_gain_must_not_hang_on_the_asymptote(catalog, caplog):
    """Random samples have a floor, and the hardest half none, so it wins with so much data.

    A law that knows no floor sees the opposite, and the errors of the fit cannot tell.
    """
    kinds = {("hardest", 0.5): lambda n: 0.1 * (n / 100_000) ** -0.2}
    add_validations(catalog, lambda n: 0.1 + 3 * n**-0.5, kinds, noise=1e-4)
    options = {"budget": 100_000, "samples": 200_000}
    with caplog.at_level("INFO", "curate"):
        rows = curate.advise(catalog, **options)
    shown = next(row for row in rows if row.arm == "hardest 0.5 by el2n")
    assert shown.gain > shown.gain_interval
    assert rows[0].arm == "random"
    assert "hardest 0.5 by el2n gains by --form power only" in caplog.text


@pytest.mark.parametrize("budget", ["many", "0", "0epochs", "-5", "0.5", "5 days"])
def test_a_budget_is_samples_or_epochs(compared, budget):
    with pytest.raises(OptionError, match=f"--budget {budget}: give samples to train on, such as"):
        curate.advise(compared, budget=budget)


def test_advice_needs_corpora_of_several_sizes(catalog):
    add_validations(catalog, random_law, HARD, sizes=(500, 50_000))
    with pytest.raises(
        CurateError, match=r"within corpora of 3 sizes by 'mlp', and there are 2: compare it"
    ):
        curate.advise(catalog, budget=100, form="pure-power")


def test_the_command_prints_a_table_or_json(compared):
    words = ("advise", "--budget", "10000", "--samples", "50000", "-c", compared.path)
    table = run_curate(*words, "--form", "pure-power")
    assert table.returncode == 0, table.stderr
    advised = next(line for line in table.stdout.splitlines() if "advised" in line)
    assert advised.split()[:5] == ["10000", "hardest", "0.2", "by", "el2n"]
    assert "100 to 10,000" in advised
    printed = json.loads(run_curate(*words, "--form", "pure-power", "-f", "json").stdout)
    assert printed[0]["is_advised"]


# What a sample is worth when it is seen again, of the time before.
DECAYS = {None: 0.9, 0.3: 0.5, 0.6: 0.7}
AMPLITUDES = {None: 3.0, 0.3: 1.7, 0.6: 2.2}


def decaying_law(keep, epochs):
    """The error of everything (None), or of a part of 10,000 samples, after so many epochs."""
    decay = DECAYS[keep]
    worth = (keep or 1) * 10_000 * (1 - decay**epochs) / (1 - decay)
    return 0.02 + AMPLITUDES[keep] * worth**-0.4


@pytest.fixture
def seen_again(catalog):
    """A corpus that was validated for 1, 2, 4, 8 and 16 epochs."""
    generator = np.random.default_rng(0)
    with catalog.writing() as connection:
        sets.replace_set(connection, make_scoring("el2n"))
        for keep in (0.3, 0.6):
            record = make_selection(f"hard-{keep}", "el2n", "hardest", keep, 10_000)
            sets.replace_set(connection, record)
        for epochs in (1, 2, 4, 8, 16):
            name = f"mlp-{epochs}"
            insert_validation(connection, name, seeds=4, num_samples=10_000, epochs=epochs)

            def insert(arm, selection, keep, error):
                errors = error * (1 + 0.001 * generator.standard_normal(4))
                size = round(keep * 10_000)
                insert_runs(connection, name, arm, selection, keep, size, errors)  # noqa: B023

            insert("full", None, 1.0, decaying_law(None, epochs))
            for keep in (0.3, 0.6):
                insert("pruned", f"hard-{keep}", keep, decaying_law(keep, epochs))
                worth = keep * 10_000 * (1 - 0.9**epochs) / (1 - 0.9)
                insert("random", f"hard-{keep}", keep, 0.02 + 3.0 * worth**-0.4)
    return catalog


def test_what_a_sample_is_worth_when_it_is_seen_again_follows_from_training_runs(
    seen_again, caplog
):
    with caplog.at_level("INFO", "curate"):
        rows = curate.advise(seen_again, budget=["1.2epochs", "4.5epochs"], samples=10_000)
    by_arm = {row.arm: row for row in rows[:3]}
    for keep, arm in (
        (None, "everything"),
        (0.3, "hardest 0.3 by el2n"),
        (0.6, "hardest 0.6 by el2n"),
    ):
        row = by_arm[arm]
        assert row.decay == pytest.approx(DECAYS[keep], abs=0.03)
        assert row.epochs == pytest.approx(1.2 / (keep or 1))
        assert row.error == pytest.approx(decaying_law(keep, row.epochs), rel=0.01)
    # A small part is worth it until it has been seen too often.
    assert rows[0].arm == "hardest 0.3 by el2n"
    assert rows[3].arm == "hardest 0.6 by el2n"
    assert "hardest 0.6 by el2n is better than hardest 0.3 by el2n" in caplog.text
    budgets = np.geomspace(1, 4.8, 2000)
    is_better = [decaying_law(0.6, b / 0.6) < decaying_law(0.3, b / 0.3) for b in budgets]
    switch = next(text for text in caplog.messages if "hardest 0.6 by el2n is better" in text)
    assert float(switch.split()[1]) == pytest.approx(budgets[is_better.index(True)], rel=0.05)


def test_budgets_in_samples_are_for_the_laws_of_several_sizes(seen_again):
    with pytest.raises(CurateError, match="choose one, such as --epochs 1"):
        curate.advise(seen_again, budget=5000)
