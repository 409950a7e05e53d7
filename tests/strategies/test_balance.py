import duckdb
import numpy as np
import pyarrow as pa
import pytest

from curate import shuffle
from curate.strategies.balance import drawn, floors


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


WINDOW = """
with ranked as (
    select sample_id, floor, priority, tiebreak,
           row_number() over (partition by group_id order by priority desc nulls last, tiebreak) as place
    from priorities join floors using (group_id)
),
contest as (
    select sample_id, row_number() over (order by priority desc nulls last, tiebreak) as place from ranked where place > floor
)
select sample_id from ranked where place <= floor
union all
select sample_id from contest where place <= $rest
order by sample_id
"""


@pytest.mark.parametrize("values", [1, 2, 20, 10**6])
def test_the_members_are_those_of_a_window_query(values):
    """Under many ties and few, NULLs, empty groups and groups that are wanted whole."""
    generator = np.random.default_rng(values)
    for keep in (0.01, 0.3, 0.77, 1.0):
        size = int(generator.integers(50, 3000))
        ids = np.sort(generator.choice(10**9, size, replace=False))
        groups = generator.choice([0, 1, 3, 4, 7], size, p=[0.5, 0.3, 0.1, 0.09, 0.01])
        priorities = generator.integers(0, values, size).astype(np.float64)
        priorities[generator.random(size) < 0.1] = np.nan
        scored = np.bincount(groups, weights=~np.isnan(priorities)).astype(int)
        sure = np.minimum(floors(np.bincount(groups), keep, generator.choice([0, 0.5, 1])), scored)
        total = round(keep * size)
        found = ids[drawn(groups, priorities, ids, sure, total, 5)]
        connection = duckdb.connect()
        connection.register("floors", pa.table({"group_id": np.arange(len(sure)), "floor": sure}))
        connection.register("priorities", pa.table({
            "sample_id": ids, "group_id": groups, "priority": pa.array(priorities, mask=np.isnan(priorities)),
            "tiebreak": shuffle.random_bits(ids, 5),
        }))  # fmt: skip
        wanted = connection.execute(WINDOW, {"rest": total - int(sure.sum())}).fetchnumpy()["sample_id"]
        assert len(found) == total
        assert found.tolist() == wanted.tolist()
