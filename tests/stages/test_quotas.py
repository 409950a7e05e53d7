import duckdb
import numpy as np
import pyarrow as pa
import pytest

from curate import random_hash
from curate.stages.select import quotas as quotas_module
from curate.stages.select.quotas import (
    group_quotas,
    group_tiebreak,
    select_with_quotas,
    top_k,
)


def test_half_of_an_equal_share_is_sure():
    assert group_quotas(np.array([100, 60, 10]), 0.4, 0.5).tolist() == [20, 12, 2]


def test_rounding_up_saves_tiny_classes():
    sizes = np.concatenate([np.full(16, 1), np.full(984, 500)])
    quotas = group_quotas(sizes, 0.2, 0.5)
    assert quotas.min() == 1
    assert quotas.sum() <= round(0.2 * sizes.sum())


def test_exact_products_are_not_rounded_up():
    assert group_quotas(np.array([30, 30]), 0.1, 1.0).tolist() == [3, 3]


def test_where_the_ceilings_exceed_the_selection_the_smallest_remainders_give_way():
    # 0.5 · [3, 5, 7] = [1.5, 2.5, 3.5] -> [2, 3, 4], one more than round(7.5) = 8.
    assert group_quotas(np.array([3, 5, 7]), 0.5, 1.0).sum() == 8
    # 0.3 · [4, 9, 7] = [1.2, 2.7, 2.1] -> [2, 3, 3] is 2 more than 6; .1 and .2 give way.
    assert group_quotas(np.array([4, 9, 7]), 0.3, 1.0).tolist() == [1, 3, 2]


def test_uniform_quotas_are_the_same_for_each_and_never_more_than_there_are():
    assert group_quotas(np.array([100, 100, 4]), 0.5, 0.6, "uniform").tolist() == [21, 21, 4]


@pytest.mark.parametrize("base", ["proportional", "uniform"])
def test_quotas_fit_into_any_selection(base):
    generator = np.random.default_rng(0)
    for _ in range(300):
        sizes = generator.integers(1, generator.integers(2, 300), generator.integers(1, 40))
        keep, balance = generator.uniform(0.001, 1), generator.choice([0, generator.uniform(), 1])
        quotas = group_quotas(sizes, keep, balance, base)
        assert (quotas >= 0).all()
        assert (quotas <= sizes).all()
        assert quotas.sum() <= round(keep * sizes.sum())


def keep_classes(groups: np.ndarray, ids: np.ndarray, keep: float, seed: int) -> np.ndarray:
    """The quotas of classes whose ceilings are too many, by the order under a seed."""
    tiebreak = group_tiebreak(groups, ids, seed)
    return group_quotas(np.bincount(groups), keep, 1.0, tiebreak=tiebreak)


def test_of_twenty_classes_of_one_image_each_is_kept_sometimes():
    """At keep 0.2 four stay, and it is the seed that says which."""
    groups, ids = np.arange(20), np.arange(20) << 24
    kept = np.array([keep_classes(groups, ids, 0.2, seed) for seed in range(200)])
    assert (kept.sum(axis=1) == 4).all()
    assert 20 < kept.sum(axis=0).min() <= kept.sum(axis=0).max() < 60  # 40 on average


def test_which_classes_give_way_depends_on_their_images_and_not_on_their_order():
    ids, generator = np.arange(60), np.random.default_rng(0)
    groups = ids // 3
    order = generator.permutation(20)
    for seed in range(5):
        quotas = keep_classes(groups, ids, 0.2, seed)
        assert keep_classes(order[groups], ids, 0.2, seed)[order].tolist() == quotas.tolist()


def test_equal_remainders_of_unequal_classes_are_ties():
    """0.2 · 1 and 0.2 · 6 differ in their last binary digit, which must not decide."""
    sizes = np.array([1, 6, 11, 16, 21])
    groups = np.repeat(np.arange(5), sizes)
    ids = np.arange(len(groups))
    given_way = {
        tuple(np.flatnonzero(keep_classes(groups, ids, 0.2, seed) == sizes // 5))
        for seed in range(100)
    }
    assert {group for groups in given_way for group in groups} == {0, 1, 2, 3, 4}


# The first of each group, as many as its floor; the rest are the first of all others.
WINDOW_QUERY = """
with ranked as (
    select
        sample_id,
        quota,
        priority,
        tiebreak,
        row_number() over (
            partition by group_id order by priority desc nulls last, tiebreak
        ) as rank
    from priorities join quotas using (group_id)
),
contest as (
    select
        sample_id,
        row_number() over (order by priority desc nulls last, tiebreak) as rank
    from ranked
    where rank > quota
)
select sample_id from ranked where rank <= quota
union all
select sample_id from contest where rank <= $rest
order by sample_id
"""


@pytest.mark.parametrize("block_rows", [16, 1 << 20])
@pytest.mark.parametrize("num_values", [1, 2, 20, 10**6])
def test_the_members_are_those_of_a_window_query(num_values, block_rows, monkeypatch):
    """Under many ties and few, NULLs, empty groups and groups that are kept whole; and whether the
    samples are looked at in many blocks or in one."""
    monkeypatch.setattr(quotas_module, "_BLOCK_ROWS", block_rows)
    generator = np.random.default_rng(num_values)
    for keep in (0.01, 0.3, 0.77, 1.0):
        size = int(generator.integers(50, 3000))
        ids = np.sort(generator.choice(10**9, size, replace=False))
        groups = generator.choice([0, 1, 3, 4, 7], size, p=[0.5, 0.3, 0.1, 0.09, 0.01])
        priorities = generator.integers(0, num_values, size).astype(np.float64)
        priorities[generator.random(size) < 0.1] = np.nan
        num_scored = np.bincount(groups, weights=~np.isnan(priorities)).astype(int)
        balance = generator.choice([0, 0.5, 1])
        quotas = np.minimum(group_quotas(np.bincount(groups), keep, balance), num_scored)
        total = round(keep * size)
        selected = ids[select_with_quotas(groups, priorities, ids, quotas, total, 5)]
        assert len(selected) == total
        quota_table = {"group_id": np.arange(len(quotas)), "quota": quotas}
        priority_table = {
            "sample_id": ids,
            "group_id": groups,
            "priority": pa.array(priorities, mask=np.isnan(priorities)),
            "tiebreak": random_hash.random_bits(ids, 5),
        }
        with duckdb.connect() as connection:
            connection.register("quotas", pa.table(quota_table))
            connection.register("priorities", pa.table(priority_table))
            result = connection.execute(WINDOW_QUERY, {"rest": total - int(quotas.sum())})
            expected = result.fetchnumpy()["sample_id"]
        assert selected.tolist() == expected.tolist()


@pytest.mark.parametrize("block_rows", [3, 1 << 20])
def test_priorities_of_any_sign_and_size_are_in_their_order(block_rows, monkeypatch):
    monkeypatch.setattr(quotas_module, "_BLOCK_ROWS", block_rows)
    values = [np.inf, 1e300, 2.0, 1 + 1e-16, 1.0, 5e-324, 0.0, -5e-324, -1.0, -1e300, -np.inf]
    priorities = np.random.default_rng(0).permutation([*values, np.nan])
    ids = np.arange(len(priorities))
    for k in range(1, len(priorities)):
        kept = priorities[top_k(priorities, ids, k, 0)]
        assert sorted(kept, reverse=True) == values[:k]
    zeros = np.array([0.0, -0.0] * 50)
    ids = np.arange(100)
    kept = top_k(zeros, ids, 50, 7)
    assert set(ids[kept]) == set(np.argsort(random_hash.random_bits(ids, 7))[:50])
