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
