import numpy as np
import pytest

from curate.stages.fit import scaling_laws

SIZES = np.array([250, 500, 1000, 2000, 5000, 10_000, 50_000])


@pytest.mark.parametrize(("exponent", "asymptote"), [(0.5, 0.0), (0.3, 0.18), (1.0, 0.02)])
def test_a_power_law_is_found_with_its_asymptote(exponent, asymptote):
    law = scaling_laws.fit_law(SIZES, asymptote + 3.0 * SIZES**-exponent)
    assert law.exponent == pytest.approx(exponent, rel=2e-2)
    assert law.asymptote == pytest.approx(asymptote, abs=2e-3)
    np.testing.assert_allclose(law(SIZES), asymptote + 3.0 * SIZES**-exponent, rtol=2e-3)


def test_an_exponential_is_found():
    errors = 0.1 + 0.4 * np.exp(-SIZES / 5000)
    law = scaling_laws.fit_law(SIZES, errors, "exponential")
    assert law.exponent == pytest.approx(1 / 5000, rel=2e-2)
    assert law.asymptote == pytest.approx(0.1, abs=2e-3)


def test_the_interval_of_the_exponent_holds_the_truth():
    generator = np.random.default_rng(0)
    noise = 0.01 * generator.standard_normal((len(SIZES), 6))
    errors = (0.05 + 3.0 * SIZES[:, None] ** -0.5) * (1 + noise)
    fitted = scaling_laws.fit_arms(SIZES, errors, pareto=False)
    assert fitted.low < 0.5 < fitted.high
    assert fitted.high - fitted.low < 0.2


@pytest.mark.parametrize("pareto", [False, True])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(pareto):
    """Five seeds, whose models differ together as well as one by one; one arm in four is best."""
    generator = np.random.default_rng(0)
    sizes = np.outer([500, 2000, 10_000, 50_000], [1, 0.8, 0.5, 0.3]).ravel()
    true_errors = 0.16 + 2.2 * sizes**-0.3 + np.tile([0, -0.004, 0, 0.01], 4)
    levels, level_errors = sizes, true_errors
    if pareto:
        levels, level_errors = scaling_laws.envelope(sizes, true_errors[:, None].repeat(2, axis=1))
    true_exponent = scaling_laws.fit_law(levels, level_errors).exponent
    num_covered = 0
    for _ in range(50):
        run_noise = 0.003 * generator.standard_normal((16, 5))
        seed_noise = 0.0015 * generator.standard_normal(5)
        errors = true_errors[:, None] + run_noise + seed_noise
        fitted = scaling_laws.fit_arms(sizes, errors, pareto=pareto)
        num_covered += fitted.low <= true_exponent <= fitted.high
    assert num_covered >= 44


def test_the_envelope_of_equal_arms_is_no_lower_than_they_are():
    """Twenty arms of one size and one true error: the least of their means is too low."""
    generator = np.random.default_rng(0)
    least_means, envelopes = [], []
    for _ in range(200):
        errors = 0.2 + 0.01 * generator.standard_normal((20, 4))
        least_means.append(errors.mean(axis=1).min())
        envelopes.append(scaling_laws.envelope(np.full(20, 100), errors)[1][0])
    assert np.mean(least_means) < 0.192
    assert np.mean(envelopes) == pytest.approx(0.2, abs=0.001)


def test_the_envelope_takes_the_best_arm_that_is_not_larger():
    sizes = np.array([100, 100, 200, 300])
    errors = np.array([0.3, 0.2, 0.25, 0.1])[:, None].repeat(4, axis=1)
    levels, level_errors = scaling_laws.envelope(sizes, errors)
    assert levels.tolist() == [100, 200, 300]
    np.testing.assert_allclose(level_errors, [0.2, 0.2, 0.1])


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.0])
def test_a_pure_power_law_has_no_asymptote(exponent):
    law = scaling_laws.fit_law(SIZES, 3.0 * SIZES**-exponent, "pure-power")
    assert law.exponent == pytest.approx(exponent)
    assert law.amplitude == pytest.approx(3.0)
    assert law.asymptote == 0
    np.testing.assert_allclose(law(SIZES), 3.0 * SIZES**-exponent)
    rising = scaling_laws.fit_law(SIZES, 0.01 * SIZES**0.1, "pure-power")
    assert 0 < rising.exponent < 0.01


@pytest.mark.parametrize("form", ["pure-power", "power"])
def test_the_interval_of_a_difference_of_exponents_holds_the_truth_as_often_as_it_says(form):
    """Five seeds; what a seed does to one arm it does to the other in part, so they are paired."""
    generator = np.random.default_rng(1)
    sizes = np.array([250, 1000, 5000, 25_000, 100_000])
    asymptote = 0.05 if form == "power" else 0.0
    first, second = (asymptote + 3.0 * sizes**-exponent for exponent in (0.6, 0.5))
    num_simulations = 400 if form == "pure-power" else 25
    num_covered, widths = 0, []
    for _ in range(num_simulations):
        shared = 1 + 0.01 * generator.standard_normal((len(sizes), 5))
        own = 1 + 0.005 * generator.standard_normal((2, len(sizes), 5))
        laws = [
            scaling_laws.fit_arms(sizes, errors[:, None] * shared * noise, pareto=False, form=form)
            for errors, noise in zip((first, second), own, strict=True)
        ]
        difference = scaling_laws.compare_exponents(*laws)
        num_covered += abs(difference.estimate - 0.1) < difference.half_width
        widths.append(difference.half_width)
    assert num_covered / num_simulations >= 0.92
    if form == "pure-power":
        assert num_covered / num_simulations <= 0.98
        assert np.mean(widths) < 0.01
