"""k-means in two levels: as good as flat where there are few cells, and the same for everyone."""

import numpy as np
import pytest

from curate import distances
from curate.catalog.catalog import Catalog
from curate.stages.cluster import kmeans, two_levels
from curate.stages.cluster.stage import cluster
from curate.stages.cluster.two_levels import CentroidCells, divide_centroids


def draw_rows(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


@pytest.mark.parametrize("distance", distances.DISTANCES)
def test_with_every_cell_looked_at_the_centroid_is_the_nearest(distance, monkeypatch):
    centroids = distances.normalize_rows(draw_rows(100), distance)
    rows = distances.normalize_rows(draw_rows(20_000, seed=1), distance)
    cells = CentroidCells.build(centroids, distance)
    monkeypatch.setattr(two_levels, "NUM_PROBES", len(cells.centers))
    tiles = list(cells.iterate_nearest(rows))
    assert np.array_equal(np.concatenate([tile for tile, _ in tiles]), rows)
    found = np.concatenate([clusters for _, clusters in tiles])
    nearest, shortest = distances.nearest_centroids(rows, centroids, distance)
    assert np.mean(found == nearest) > 0.9999  # products are rounded
    lengths = distances.rowwise_distance(rows, centroids, distance, found)
    np.testing.assert_allclose(lengths, shortest, atol=1e-6)


def test_few_cells_find_the_nearest_of_most_rows_and_a_near_one_of_the_others(monkeypatch):
    monkeypatch.setattr(two_levels, "NUM_PROBES", 6)
    centroids = distances.l2_normalize(draw_rows(900))
    rows = distances.l2_normalize(draw_rows(2_000, seed=1))
    cells = CentroidCells.build(centroids, "cosine")
    found = np.concatenate([clusters for _, clusters in cells.iterate_nearest(rows)])
    nearest, shortest = distances.nearest_centroids(rows, centroids, "cosine")
    assert np.mean(found == nearest) > 0.9
    lengths = distances.rowwise_distance(rows, centroids, "cosine", found)
    assert lengths.mean() < 1.02 * shortest.mean()


def test_equal_centroids_and_cells_without_any_do_no_harm():
    centroids = np.repeat(distances.l2_normalize(draw_rows(3)), [60, 30, 10], axis=0)
    cells = CentroidCells.build(centroids, "cosine")
    assert sorted(cells.ids) == list(range(100))
    ((_, found),) = cells.iterate_nearest(centroids)
    np.testing.assert_array_equal(centroids[found], centroids)


@pytest.mark.parametrize("seed", range(5))
def test_centroids_are_divided_in_proportion_to_the_rows(seed):
    num_rows = np.random.default_rng(seed).integers(0, 200, 30) ** 2
    for k in (40, 1_000, int(num_rows.sum())):
        counts = divide_centroids(num_rows, k)
        assert counts.sum() == k
        assert (counts <= num_rows).all()
        assert (counts[num_rows > 0] > 0).all()
        assert np.abs(counts - k * num_rows / num_rows.sum()).max() <= 2 or k == 40


@pytest.mark.parametrize("distance", distances.DISTANCES)
def test_a_fit_in_two_levels_is_about_as_good_as_flat(distance, monkeypatch):
    rows = distances.normalize_rows(draw_rows(8_000, dim=4), distance)

    def fit() -> float:
        centroids = kmeans.fit_centroids(rows, 120, distance, 8, seed=0)
        assert centroids.shape == (120, 4)
        sums = kmeans.ClusterSums.zeros(centroids)
        sums.add_rows(rows, centroids, distance)
        return sums.objective(centroids, distance)

    flat = fit()
    monkeypatch.setattr(two_levels, "MIN_CENTROIDS", 120)
    assert fit() < 1.05 * flat


def test_a_clustering_in_two_levels_goes_through_all_stages(catalog: Catalog, monkeypatch):
    monkeypatch.setattr(two_levels, "MIN_CENTROIDS", 6)
    cluster(catalog, k=6, distance="euclidean", full_iterations=1)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select distance, cluster_id from assignments order by sample_id"
        ).fetchall()
    assert len(rows) == 30
    assert {cluster_id for _, cluster_id in rows} <= set(range(6))
    monkeypatch.setattr(two_levels, "NUM_PROBES", 2)  # of 2 cells: the nearest of all
    cluster(catalog, k=6, distance="euclidean", full_iterations=1, name="again")
    with catalog.reading() as connection:
        again = connection.execute(
            "select distance, cluster_id from assignments "
            "where clustering = 'again' order by sample_id"
        ).fetchall()
    assert again == rows
