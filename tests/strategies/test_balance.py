import numpy as np
import pytest

from curate.strategies.balance import floors


def test_half_of_an_equal_share_is_sure():
    assert floors(np.array([100, 60, 10]), 0.4, 0.5).tolist() == [20, 12, 2]


def test_rounding_up_saves_tiny_classes():
    sizes = np.concatenate([np.full(16, 1), np.full(984, 500)])
    found = floors(sizes, 0.2, 0.5)
    assert found.min() == 1
    assert found.sum() <= round(0.2 * sizes.sum())


def test_exact_products_are_not_rounded_up():
    assert floors(np.array([30, 30]), 0.1, 1.0).tolist() == [3, 3]


def test_where_the_ceilings_exceed_the_selection_the_smallest_remainders_give_way():
    # 0.5 · [3, 5, 7] = [1.5, 2.5, 3.5] -> [2, 3, 4], one more than round(7.5) = 8.
    assert floors(np.array([3, 5, 7]), 0.5, 1.0).sum() == 8
    # 0.3 · [4, 9, 7] = [1.2, 2.7, 2.1] -> [2, 3, 3] is 2 more than 6; .1 and .2 give way.
    assert floors(np.array([4, 9, 7]), 0.3, 1.0).tolist() == [1, 3, 2]


def test_uniform_floors_are_the_same_for_each_and_never_more_than_there_are():
    assert floors(np.array([100, 100, 4]), 0.5, 0.6, "uniform").tolist() == [21, 21, 4]


@pytest.mark.parametrize("base", ["proportional", "uniform"])
def test_floors_fit_into_any_selection(base):
    generator = np.random.default_rng(0)
    for _ in range(300):
        sizes = generator.integers(1, generator.integers(2, 300), generator.integers(1, 40))
        keep, balance = generator.uniform(0.001, 1), generator.choice([0, generator.uniform(), 1])
        found = floors(sizes, keep, balance, base)
        assert (found >= 0).all()
        assert (found <= sizes).all()
        assert found.sum() <= round(keep * sizes.sum())
