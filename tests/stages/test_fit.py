import pytest
from conftest import rows
from corpora import add_validations
from PIL import Image

import curate
from curate.errors import CurateError, OptionError


def random_law(num_samples):
    return 0.1 + 3 * num_samples**-0.5


def hard_law(num_samples):
    """Hard examples are worth 1.4 times as many at random."""
    return random_law(1.4 * num_samples)


HARD_HALF = {("hardest", 0.5): hard_law}


def test_the_exponents_come_with_intervals_and_pictures(catalog):
    add_validations(catalog, random_law, HARD_HALF)
    assert curate.fit(catalog) == ["mlp-random", "mlp-pareto", "mlp-hardest-0.5-el2n"]
    ((exponent, low, high, asymptote, points, seeds),) = rows(
        catalog,
        "select exponent, exponent_low, exponent_high, asymptote, num_points, seeds "
        "from fits where arms = 'random'",
    )
    assert low <= exponent <= high
    assert exponent == pytest.approx(0.5, abs=0.05)
    assert asymptote == pytest.approx(0.1, abs=0.02)
    assert (points, seeds) == (8, 4)
    assert rows(
        catalog,
        "select max(abs(fitted / error - 1)) < 0.02 from fit_points where fit = 'mlp-random'",
    ) == [(True,)]
    for name in ("scaling-mlp", "crossover-mlp", "compute-mlp", "classes-mlp"):
        with Image.open(catalog.path / "figures" / f"{name}.png") as image:
            assert image.width > 600
        assert (catalog.path / "figures" / f"{name}.svg").is_file()
    envelope_is_lower = rows(
        catalog,
        "select bool_and(pareto.error < random.error + 1e-3) "
        "from fit_points as pareto join fit_points as random using (num_samples) "
        "where pareto.fit = 'mlp-pareto' and random.fit = 'mlp-random'",
    )
    assert envelope_is_lower == [(True,)]


def test_selections_that_differ_in_an_option_of_their_strategy_have_laws_of_their_own(catalog):
    kinds = {("hardest", 0.5): lambda n: 6 * n**-0.6, ("easiest", 0.5): lambda n: 2 * n**-0.4}
    add_validations(catalog, lambda n: 3 * n**-0.5, kinds)
    with catalog.writing() as connection:
        connection.execute(
            "update selections set strategy = 'hardest', strategy_options = 'beta=0.2' "
            "where strategy = 'easiest'"
        )
    names = curate.fit(catalog, form="pure-power")
    assert "mlp-hardest-0.5-el2n-beta=0.2-pure-power" in names
    exponents = rows(
        catalog,
        "select strategy_options, round(exponent, 1) from fits where arms = 'pruned' order by all",
    )
    assert exponents == [("beta=0.2", 0.4), (None, 0.6)]


def test_each_keep_has_its_own_law_and_its_difference_from_random(catalog):
    kinds = {
        ("hardest", 0.5): lambda n: 6 * n**-0.6,
        ("hardest", 0.2): lambda n: 2 * n**-0.4,
        ("easiest", 0.5): lambda n: 3 * n**-0.5,
    }
    add_validations(catalog, lambda n: 3 * n**-0.5, kinds)
    curate.fit(catalog, form="pure-power")
    laws = rows(
        catalog,
        "select strategy, keep, metric, exponent, exponent_vs_random, exponent_vs_random_interval, "
        "asymptote, num_points from fits where arms = 'pruned' order by strategy, keep",
    )
    assert [law[:3] for law in laws] == [
        ("easiest", 0.5, "el2n"),
        ("hardest", 0.2, "el2n"),
        ("hardest", 0.5, "el2n"),
    ]
    for (*_, exponent, difference, interval, asymptote, points), expected in zip(
        laws, (0.5, 0.4, 0.6), strict=True
    ):
        assert exponent == pytest.approx(expected, abs=0.01)
        assert abs(difference - (expected - 0.5)) < interval < 0.01
        assert (asymptote, points) == (0, 4)


def test_several_models_are_fitted_side_by_side(catalog):
    add_validations(catalog, lambda n: 3 * n**-0.5, HARD_HALF)
    add_validations(catalog, lambda n: 3 * n**-0.3, HARD_HALF, model="linear")
    names = curate.fit(catalog, model=["mlp", "linear"], form="pure-power")
    assert names[::3] == ["mlp-random-pure-power", "linear-random-pure-power"]
    curate.fit(catalog, strategy="hardest")  # another form, and other names
    table = curate.query(catalog, "exponents").to_pylist()
    assert [(row["model"], row["form"], row["fit"]) for row in table] == [
        ("mlp", "power", "mlp-hardest-random"),
        ("linear", "pure-power", "linear-random-pure-power"),
        ("mlp", "pure-power", "mlp-random-pure-power"),
    ]
    assert table[1]["random"] == pytest.approx(0.3, abs=0.01)
    assert table[2]["random"] == pytest.approx(0.5, abs=0.01)


def test_a_fit_may_take_some_scorings_and_strategies_only(catalog):
    kinds = {("hardest", 0.5): lambda n: 6 * n**-0.6, ("easiest", 0.5): random_law}
    metrics = ("el2n", "aum")
    add_validations(catalog, random_law, kinds, metrics=metrics)
    names = curate.fit(catalog, scoring="el*", strategy="hardest")
    assert names == [
        "mlp-el-hardest-random",
        "mlp-el-hardest-pareto",
        "mlp-el-hardest-hardest-0.5-el2n",
    ]
    with pytest.raises(CurateError, match="there are: easiest by aum, easiest by el2n, hardest by"):
        curate.fit(catalog, scoring="ddd")
    with pytest.raises(OptionError, match="no strategy called 'odd'"):
        curate.fit(catalog, strategy="odd")
    curate.fit(catalog)
    assert (catalog.path / "figures" / "metrics-mlp.png").is_file(), "two metrics are compared"


def test_sizes_that_were_trained_by_different_rules_are_no_law(catalog):
    add_validations(catalog, random_law, HARD_HALF, sizes=(10_000, 50_000))
    add_validations(catalog, random_law, HARD_HALF, sizes=(500, 2000), epochs=16)
    with pytest.raises(
        CurateError,
        match=r"different rules \(500 samples for 16, 2,000 samples for 16, 10,000 samples for 10, "
        r"50,000 samples for 10 epochs\): choose one, such as --epochs 10",
    ):
        curate.fit(catalog)
    assert curate.fit(catalog, epochs=10) == ["mlp-10epochs-random", "mlp-10epochs-pareto"]


def test_equal_iterations_are_as_many_at_every_size(catalog):
    schedule = {"schedule": "iterations"}
    add_validations(catalog, random_law, HARD_HALF, sizes=(10_000, 50_000), epochs=10, **schedule)
    with pytest.raises(
        CurateError, match=r"--schedule iterations --epochs 50` for the 10,000 samples"
    ):
        curate.fit(catalog, **schedule)
    add_validations(catalog, random_law, HARD_HALF, sizes=(10_000,), epochs=50, **schedule)
    assert curate.fit(catalog, **schedule)[0] == "mlp-iterations-random"


def test_a_fit_of_one_corpus_draws_what_it_can_and_says_what_is_missing(catalog):
    kinds = {("hardest", keep): hard_law for keep in (0.8, 0.5, 0.2)}
    add_validations(catalog, random_law, kinds, sizes=(5000,), metrics=("el2n", "aum"))
    with pytest.raises(
        CurateError, match=r"of one corpus of 5,000 samples.*--within SMALL"
    ) as error:
        curate.fit(catalog)
    assert "\n" not in str(error.value)
    figures = sorted(path.name for path in (catalog.path / "figures").glob("*.png"))
    assert figures == ["classes-mlp.png", "compute-mlp.png", "metrics-mlp.png"]
    assert rows(catalog, "select * from fits") == []


def test_a_fit_needs_validations_of_several_sizes(catalog):
    with pytest.raises(
        CurateError, match=r"no validation by 'mlp' \(epochs\) yet: make some with `curate validate"
    ):
        curate.fit(catalog)
    add_validations(catalog, random_law, HARD_HALF)
    with catalog.writing() as connection:
        connection.execute("delete from training_runs where num_samples > 1000")
    with pytest.raises(
        CurateError, match="fewer than 4 sizes: compare more, within smaller selections"
    ):
        curate.fit(catalog)
    with pytest.raises(OptionError, match="--form cubic: choose one of power, pure-power, expo"):
        curate.fit(catalog, form="cubic")
