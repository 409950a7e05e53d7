import numpy as np
import pytest

from curate import distances
from curate.errors import CurateError
from curate.formats import vectors
from curate.stages.cluster import kmeans


def blobs(per_blob: int = 200, dim: int = 16, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Rows of blobs that lie apart, and the blob of each row."""
    generator = np.random.default_rng(0)
    centres = 6 * generator.standard_normal((count, dim))
    blob_ids = np.repeat(np.arange(count), per_blob)
    rows = centres[blob_ids] + 0.3 * generator.standard_normal((len(blob_ids), dim))
    return rows.astype(np.float32), blob_ids


@pytest.mark.parametrize("distance", distances.DISTANCES)
def test_separate_blobs_are_found(distance):
    from sklearn.metrics import adjusted_rand_score

    rows, blob_ids = blobs()
    rows = distances.normalize_rows(rows, distance)
    # k-means may end in a poor local optimum for a seed: the best of a few is what is asked.
    scores = []
    for seed in range(5):
        centroids = kmeans.fit_centroids(rows, 5, distance, 20, seed)
        clusters, _ = distances.nearest_centroids(rows, centroids, distance)
        scores.append(adjusted_rand_score(blob_ids, clusters))
    assert max(scores) > 0.99


def test_all_rows_are_trained_on_not_faiss_256_a_centroid():
    rows, _ = blobs()
    centroids = kmeans.fit_centroids(rows, 1, "euclidean", 5, 0)
    np.testing.assert_allclose(centroids[0], rows.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("distance", distances.DISTANCES)
def test_iterations_are_those_of_faiss(distance):
    """Iterations over two parts of the rows end where those of faiss do from the same start."""
    import faiss

    rows = np.random.default_rng(0).standard_normal((3000, 12)).astype(np.float32)
    rows = distances.normalize_rows(rows, distance)
    initial_centroids = rows[:7].copy()
    by_faiss = faiss.Kmeans(
        12, 7, niter=6, spherical=distance == "cosine", max_points_per_centroid=len(rows)
    )
    by_faiss.train(rows, init_centroids=initial_centroids)
    centroids, objectives = initial_centroids, []
    for _ in range(6):
        sums, other_sums = (kmeans.ClusterSums.zeros(centroids) for _ in range(2))
        sums.add_rows(rows[:1700], centroids, distance)
        other_sums.add_rows(rows[1700:], centroids, distance)
        sums = sums.merge(other_sums)
        exact = distances.nearest_centroids(rows, centroids, distance)[1].astype(np.float64)
        objective = exact.sum() if distance == "cosine" else np.square(exact).sum()
        assert sums.objective(centroids, distance) == pytest.approx(objective, rel=1e-5)
        objectives.append(objective)
        centroids = sums.new_centroids(centroids, distance)
    np.testing.assert_allclose(centroids, by_faiss.centroids, atol=1e-4)
    assert objectives == sorted(objectives, reverse=True)


def test_an_empty_cluster_takes_half_of_the_largest():
    rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    centroids = np.concatenate([rows[:3], np.full((2, 4), 1000, np.float32)])
    for _ in range(3):
        sums = kmeans.ClusterSums.zeros(centroids)
        sums.add_rows(rows, centroids, "euclidean")
        centroids = sums.new_centroids(centroids, "euclidean")
    clusters, _ = distances.nearest_centroids(rows, centroids, "euclidean")
    assert (np.bincount(clusters, minlength=5) > 0).all()


def test_too_few_rows_say_so():
    with pytest.raises(CurateError, match="3 rows cannot make 5 clusters"):
        kmeans.fit_centroids(np.eye(3, dtype=np.float32), 5, "cosine", 5, 0)


def test_the_fixture_point_is_at_the_stated_distances():
    rows, centroids = np.array([[0.6, 0.8]], np.float32), np.eye(2, dtype=np.float32)
    assert distances.nearest_centroids(rows, centroids[:1], "cosine")[1] == pytest.approx(0.4)
    assert distances.nearest_centroids(rows, centroids[:1], "euclidean")[1] == pytest.approx(
        np.sqrt(0.8)
    )
    assert distances.nearest_centroids(rows, centroids, "euclidean")[0].tolist() == [1]


def test_nearest_agrees_with_all_pairs_in_float64():
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((9000, 8)).astype(np.float32) + 100
    centroids = (generator.standard_normal((7, 8)) + 100).astype(np.float32)
    exact = np.linalg.norm(rows[:, None].astype(np.float64) - centroids, axis=2)
    clusters, nearest = distances.nearest_centroids(rows, centroids, "euclidean")
    np.testing.assert_allclose(nearest, exact[np.arange(len(rows)), clusters], rtol=1e-5)
    # Far from the origin float32 products are coarse; the chosen centroid is never worse than by
    # that.
    np.testing.assert_allclose(nearest, exact.min(axis=1), atol=0.02)


def test_a_sample_of_rows_does_not_depend_on_the_files(tmp_path):
    rows = np.arange(40, dtype=np.float16).reshape(20, 2)
    samples = []
    for sizes in ([20], [7, 13], [1, 9, 0, 10]):
        files, start = {}, 0
        for size in sizes:
            file = str(tmp_path / f"{len(sizes)}-{len(files)}.parquet")
            stop = start + size
            vectors.write_vectors(file, np.arange(start, stop), rows[start:stop])
            files[file], start = size, stop
        samples.append(vectors.sample_rows(files, 6, 3, lambda amount, samples: None).tolist())
    assert samples[0] == samples[1] == samples[2]
    assert len({tuple(row) for row in samples[0]}) == 6
