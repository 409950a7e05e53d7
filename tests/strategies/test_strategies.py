"""Each strategy: numbers that others published or that are short enough to do by hand, and a slow
version by the letter of its definition."""

import numpy as np
import pytest

from curate.distances import l2_normalize
from curate.errors import CurateError
from curate.random_hash import random_bits
from curate.strategies import (
    Neighbours,
    check_num_passes,
    round_to_total,
    strategies,
)
from curate.strategies.coverage import stratum_budgets
from curate.strategies.density import centroid_separation, cluster_shares, fit_sizes
from curate.strategies.flat import cut_sizes, find_cut, share_down

strategies.load()


def kept_rows(priorities: np.ndarray, num_kept: int) -> list[int]:
    """The rows of the highest priorities, from the highest down."""
    return np.argsort(-priorities, kind="stable")[:num_kept].tolist()


def exact_neighbours(vectors: np.ndarray, count: int) -> Neighbours:
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1)[:, :count]
    return Neighbours(indices.astype(np.int32), np.take_along_axis(distances, indices, axis=1))


def unit_vectors(num_rows: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return l2_normalize(np.random.default_rng(seed).standard_normal((num_rows, dim))).astype("f4")


# -- coverage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "sizes", "budgets"),
    [
        (10, [1, 2, 50, 3], [1, 2, 4, 3]),
        (20, [0, 5, 5, 100], [0, 5, 5, 10]),
        (100, [10, 20, 30, 5], [10, 20, 30, 5]),
    ],
)
def test_strata_share_a_budget_from_the_smallest_on(budget, sizes, budgets):
    assert stratum_budgets(budget, np.array(sizes)).tolist() == budgets


def test_coverage_drops_the_hardest_and_takes_every_stratum_alike():
    scores = np.random.default_rng(0).random(400) ** 3
    ids = np.arange(400)
    quotas = strategies["coverage"](scores, ids, 40, 0, beta=0.25, strata=5)
    threshold = np.sort(scores)[-100]  # the hardest 100 are dropped
    assert quotas.sizes[-1] == 0
    assert ((scores >= threshold) == (quotas.groups == 5)).all()
    edges = np.linspace(scores.min(), scores[scores < threshold].max(), 6)
    for stratum in range(5):
        inside = scores[quotas.groups == stratum]
        assert (inside >= edges[stratum] - 1e-12).all()
        assert (inside <= edges[stratum + 1] + 1e-12).all()
    assert quotas.sizes.sum() == 40
    assert quotas.sizes.max() - quotas.sizes[quotas.sizes > 0].min() <= 8


def test_coverage_chooses_beta_by_what_is_kept():
    scores, ids = np.arange(1000.0), np.arange(1000)
    for num_kept, num_dropped in ((50, 300), (100, 300), (200, 200), (400, 0), (900, 0)):
        quotas = strategies["coverage"](scores, ids, num_kept, 0)
        assert abs((quotas.groups == 50).sum() - num_dropped) <= 1


def test_coverage_says_when_beta_leaves_too_few():
    with pytest.raises(CurateError, match=r"there are 5 of the 7 samples to keep: lower --option"):
        strategies["coverage"](np.arange(10.0), np.arange(10), 7, 0, beta=0.5)


# -- density ---------------------------------------------------------------------------------------


def test_sizes_of_clusters_are_those_of_the_quadratic_program():
    shares = cluster_shares(np.array([0.1, 0.2, 0.3, 0.4]), 0.1)
    np.testing.assert_allclose(shares, [0.032059, 0.087144, 0.236883, 0.643914], atol=5e-7)
    sizes = fit_sizes(shares, 100, np.full(4, 5), np.array([50, 40, 30, 20]))
    np.testing.assert_allclose(sizes, [22.2457, 27.7543, 30, 20], atol=5e-5)
    assert round_to_total(sizes, 100).tolist() == [22, 28, 30, 20]


def test_sizes_of_clusters_are_as_good_as_those_of_a_solver():
    from scipy.optimize import minimize

    generator = np.random.default_rng(1)
    for _ in range(5):
        shares = generator.dirichlet(np.ones(6))
        most = generator.integers(5, 40, 6)
        total = int(most.sum()) // 2
        result = minimize(
            lambda x, target: ((x - target) ** 2).sum() / 2,
            most / 2,
            args=(shares * total,),
            bounds=[(1, limit) for limit in most],
            constraints={"type": "eq", "fun": lambda x, total: x.sum() - total, "args": (total,)},
        )
        ours = fit_sizes(shares, total, np.ones(6), most)
        np.testing.assert_allclose(ours, result.x, atol=1e-2)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_centroids_are_separated_by_the_mean_distance_to_the_twenty_nearest(distance):
    centroids = unit_vectors(30)
    if distance == "euclidean":
        centroids = centroids * 3
    differences = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
    slow = differences**2 / 2 if distance == "cosine" else differences
    np.fill_diagonal(slow, np.inf)
    slow = np.sort(slow, axis=1)[:, :20].mean(axis=1)
    np.testing.assert_allclose(centroid_separation(centroids, distance), slow, rtol=1e-4)


def test_density_keeps_more_of_a_wide_cluster_and_the_farthest_in_each():
    clusters = np.repeat([0, 1, 2], 100)
    distances = np.random.default_rng(0).random(300) * np.repeat([0.1, 0.5, 0.9], 100)
    quotas = strategies["density"](clusters, distances, unit_vectors(3), "cosine", 90)
    assert quotas.sizes.sum() == 90
    assert quotas.sizes[0] < quotas.sizes[1] < quotas.sizes[2]
    assert (quotas.priorities == distances).all()
    assert (quotas.groups == clusters).all()


# -- moderate --------------------------------------------------------------------------------------


def test_moderate_keeps_the_middle_of_the_distances_to_the_class_medians():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((60, 4)).astype("f4")
    groups = generator.integers(0, 3, 60)
    distances = np.empty(60)
    for row in range(60):
        median = np.median(vectors[groups == groups[row]], axis=0)
        distances[row] = np.linalg.norm(vectors[row] - median)
    by_distance = np.argsort(distances)
    priorities = strategies["moderate"](vectors, groups, np.arange(60), 0, 20)
    assert set(kept_rows(priorities, 20)) == set(by_distance[20:40].tolist())
    assert by_distance[0] not in kept_rows(priorities, 59)[:58]


def test_the_medians_of_a_large_class_are_taken_in_blocks(monkeypatch):
    from curate.strategies import moderate

    vectors = unit_vectors(50, 7)
    whole = strategies["moderate"](vectors, np.zeros(50, int), np.arange(50), 0, 10)
    monkeypatch.setattr(moderate, "_BLOCK_VALUES", 100)
    blocks = strategies["moderate"](vectors, np.zeros(50, int), np.arange(50), 0, 10)
    assert (whole == blocks).all()


# -- d2 --------------------------------------------------------------------------------------------


def slow_d2(scores, neighbours, num_kept, gamma):
    """By the letter, without a heap."""
    weights = [
        scores[i]
        + sum(
            np.exp(-d) * scores[j]
            for j, d in zip(neighbours.indices[i], neighbours.distances[i], strict=True)
        )
        for i in range(len(scores))
    ]
    order: list[int] = []
    for _ in range(num_kept):
        best = max((i for i in range(len(scores)) if i not in order), key=lambda i: weights[i])
        order.append(best)
        for j, d in zip(neighbours.indices[best], neighbours.distances[best], strict=True):
            weights[j] -= np.exp(-gamma * d) * weights[best]
    return order


@pytest.mark.parametrize("gamma", [0.2, 1.0, 3.0])
def test_d2_takes_the_same_as_a_search_of_all_weights_each_time(gamma):
    vectors = unit_vectors(80)
    scores = np.random.default_rng(1).random(80)
    neighbours = exact_neighbours(vectors, 5)
    priorities = strategies["d2"](
        scores, lambda count: exact_neighbours(vectors, count), np.arange(80), 0, 30, 5, gamma
    )
    assert kept_rows(priorities, 30) == slow_d2(scores, neighbours, 30, gamma)


# -- k_center --------------------------------------------------------------------------------------


def test_k_center_takes_the_farthest_from_all_taken(monkeypatch):
    from curate.strategies import k_center

    monkeypatch.setattr(k_center, "_BLOCK_ROWS", 7)
    vectors = np.random.default_rng(0).standard_normal((60, 3)).astype("f4")
    ids = np.arange(60)
    order = kept_rows(strategies["k_center"](vectors, ids, 5, 12), 12)
    assert order[0] == random_bits(ids, 5).argmin()
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    for count in range(1, 12):
        assert order[count] == distances[order[:count]].min(axis=0).argmax()


def test_copies_are_taken_last_and_once_each():
    vectors = np.repeat(unit_vectors(4), 3, axis=0)
    order = kept_rows(strategies["k_center"](vectors, np.arange(12), 0, 12), 12)
    assert sorted(order) == list(range(12))
    assert len({row // 3 for row in order[:4]}) == 4


@pytest.mark.parametrize("name", ["k_center", "design"])
def test_what_would_take_days_is_refused_in_one_line(name):
    class Many(np.ndarray):
        def __len__(self) -> int:
            return 10_000_000

    vectors = np.zeros((1, 2), np.float32).view(Many)
    with pytest.raises(CurateError, match=rf"^{name} passes over all .*: lower --keep, [^\n]*$"):
        strategies[name](vectors, np.arange(1), 0, num_kept=100_000)
    check_num_passes(name, 1_000_000, 10_000)


# -- facility location -----------------------------------------------------------------------------


def test_facility_location_on_digits_takes_the_published_samples_first():
    from sklearn.datasets import load_digits

    digits = load_digits().data.astype(np.float32)
    priorities = strategies["facility_location"](
        digits, None, np.arange(len(digits)), 0, num_kept=5
    )
    assert kept_rows(priorities, 5) == [424, 1647, 396, 339, 1030]


@pytest.mark.parametrize("is_sparse", [False, True])
def test_facility_location_takes_the_largest_of_all_gains_each_time(monkeypatch, is_sparse):
    vectors = unit_vectors(50, 8)
    similarities = np.corrcoef(vectors.astype(np.float64)) ** 2
    if is_sparse:
        from curate.strategies import facility_location as module

        monkeypatch.setattr(module, "EXACT_SAMPLES", 10)
        counts = np.zeros_like(similarities)
        np.put_along_axis(counts, exact_neighbours(vectors, 6).indices, 1, axis=1)
        np.fill_diagonal(counts, 1)
        similarities = similarities * counts
    priorities = strategies["facility_location"](
        vectors, lambda count: exact_neighbours(vectors, count), np.arange(50), 0, 15, 6
    )
    best = np.zeros(50)
    for row in kept_rows(priorities, 15):
        gains = np.maximum(similarities - best[:, None], 0).sum(axis=0)
        assert gains[row] == pytest.approx(gains.max(), abs=2e-5)
        best = np.maximum(best, similarities[:, row])


# -- flat ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "total", "cut"), [([10, 20, 30, 40], 50, 13), ([1, 1, 1, 100], 10, 7)]
)
def test_the_cut_is_where_the_smaller_sizes_add_up(sizes, total, cut):
    assert find_cut(np.array(sizes), total) == cut
    shares = cut_sizes(np.array(sizes), total, 0)
    assert shares.sum() == total
    assert (shares - np.minimum(sizes, cut)).tolist() <= [1] * 4
    assert (shares >= np.minimum(sizes, cut)).all()


def test_a_share_goes_down_the_tree():
    # Two concepts: one of a single cluster, one of three. Flat clusters would give each as much.
    sizes = np.array([100, 100, 100, 100])
    assert share_down(sizes, [], 40, 0).tolist() == [10, 10, 10, 10]
    shares = share_down(sizes, [np.array([0, 1, 1, 1])], 42, 0)
    assert shares.tolist() == [21, 7, 7, 7]
    small = share_down(np.array([4, 100, 100, 100]), [np.array([0, 1, 1, 1])], 40, 0)
    assert small.tolist() == [4, 12, 12, 12]


def test_flat_is_even_over_concepts_however_many_clusters_they_have():
    generator = np.random.default_rng(0)
    centroids = np.repeat(np.eye(2), [27, 3], axis=0) + generator.normal(0, 0.01, (30, 2))
    clusters = np.repeat(np.arange(30), 20)

    def find_clusters(rows: np.ndarray, k: int) -> np.ndarray:
        assert (len(rows), k) == (30, 3)
        return (rows[:, 1] > 0.5).astype(np.int32)

    quotas = strategies["flat"](
        clusters, centroids.astype("f4"), find_clusters, np.arange(600), 0, 108
    )
    assert quotas.sizes[:27].tolist() == [2] * 27
    assert quotas.sizes[27:].tolist() == [18] * 3


# -- design ----------------------------------------------------------------------------------------


def slow_design(vectors: np.ndarray, num_kept: int, ridge: float) -> list[int]:
    """Inverts a matrix for every candidate."""
    rows = vectors.astype(np.float64)
    order: list[int] = []
    for _ in range(num_kept):
        variances = []
        for row in range(len(rows)):
            chosen = rows[[*order, row]]
            inverse = np.linalg.inv(ridge * np.eye(rows.shape[1]) + chosen.T @ chosen)
            mean = np.einsum("nd,de,ne->n", rows, inverse, rows).mean()
            variances.append(np.inf if row in order else mean)
        order.append(int(np.argmin(variances)))
    return order


@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_design_takes_the_same_as_inverting_for_every_candidate(ridge):
    vectors = np.random.default_rng(0).standard_normal((40, 5)).astype("f4")
    priorities = strategies["design"](vectors, np.arange(40), 0, 10, ridge)
    assert kept_rows(priorities, 10) == slow_design(vectors, 10, ridge)


# -- d4 --------------------------------------------------------------------------------------------


def test_d4_ranks_the_survivors_and_says_when_they_are_too_few():
    distances = np.array([0.3, -np.inf, 0.5, 0.1])
    assert kept_rows(strategies["d4"](distances, 2), 2) == [2, 0]
    with pytest.raises(CurateError, match="leaves 3 of the 4 samples to keep: raise --option"):
        strategies["d4"](distances, 4)
