import numpy as np
import pytest

from curate import distances, vectors
from curate.engine import kmeans
from curate.errors import CurateError


def blobs(per_blob: int = 200, dim: int = 16, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = 6 * generator.standard_normal((count, dim))
    truth = np.repeat(np.arange(count), per_blob)
    return (centres[truth] + 0.3 * generator.standard_normal((len(truth), dim))).astype(np.float32), truth


@pytest.mark.parametrize("distance", distances.DISTANCES)
def test_separate_blobs_are_found(distance):
    from sklearn.metrics import adjusted_rand_score

    rows, truth = blobs()
    # k-means may end in a poor local optimum for a seed: the best of a few is what is asked.
    scores = []
    for seed in range(5):
        centroids = kmeans.fit(distances.prepared(rows, distance), 5, distance, 20, seed)
        clusters, _ = distances.nearest(distances.prepared(rows, distance), centroids, distance)
        scores.append(adjusted_rand_score(truth, clusters))
    assert max(scores) > 0.99


def test_all_rows_are_trained_on_not_faiss_256_a_centroid():
    rows, _ = blobs()
    one = kmeans.fit(rows, 1, "euclidean", 5, 0)
    np.testing.assert_allclose(one[0], rows.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("distance", distances.DISTANCES)
def test_iterations_are_those_of_faiss(distance):
    """Lloyd's iterations over two parts of the rows end where faiss, in memory, does from the same start."""
    import faiss

    rows = distances.prepared(np.random.default_rng(0).standard_normal((3000, 12)).astype(np.float32), distance)
    start = rows[:7].copy()
    peer = faiss.Kmeans(12, 7, niter=6, spherical=distance == "cosine", max_points_per_centroid=len(rows))
    peer.train(rows, init_centroids=start)
    centroids, objectives = start, []
    for _ in range(6):
        found, other = kmeans.Sums.zero(centroids), kmeans.Sums.zero(centroids)
        found.add(rows[:1700], centroids, distance)
        other.add(rows[1700:], centroids, distance)
        found = found.merged(other)
        exact = distances.nearest(rows, centroids, distance)[1].astype(np.float64)
        wanted = exact.sum() if distance == "cosine" else np.square(exact).sum()
        assert found.objective(centroids, distance) == pytest.approx(wanted, rel=1e-5)
        objectives.append(wanted)
        centroids = found.centroids(centroids, distance)
    np.testing.assert_allclose(centroids, peer.centroids, atol=1e-4)
    assert objectives == sorted(objectives, reverse=True)


def test_an_empty_cluster_takes_half_of_the_largest():
    rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    centroids = np.concatenate([rows[:3], np.full((2, 4), 1000, np.float32)])
    for _ in range(3):
        found = kmeans.Sums.zero(centroids)
        found.add(rows, centroids, "euclidean")
        centroids = found.centroids(centroids, "euclidean")
    assert (np.bincount(distances.nearest(rows, centroids, "euclidean")[0], minlength=5) > 0).all()


def test_too_few_rows_say_so():
    with pytest.raises(CurateError, match="3 rows cannot make 5 clusters"):
        kmeans.fit(np.eye(3, dtype=np.float32), 5, "cosine", 5, 0)


def test_the_fixture_point_is_at_the_stated_distances():
    rows, centroids = np.array([[0.6, 0.8]], np.float32), np.eye(2, dtype=np.float32)
    assert distances.nearest(rows, centroids[:1], "cosine")[1] == pytest.approx(0.4)
    assert distances.nearest(rows, centroids[:1], "euclidean")[1] == pytest.approx(np.sqrt(0.8))
    assert distances.nearest(rows, centroids, "euclidean")[0].tolist() == [1]


def test_nearest_agrees_with_all_pairs_in_float64():
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((9000, 8)).astype(np.float32) + 100
    centroids = (generator.standard_normal((7, 8)) + 100).astype(np.float32)
    exact = np.linalg.norm(rows[:, None].astype(np.float64) - centroids, axis=2)
    clusters, found = distances.nearest(rows, centroids, "euclidean")
    np.testing.assert_allclose(found, exact[np.arange(len(rows)), clusters], rtol=1e-5)
    # Far from the origin float32 products are coarse; the chosen centroid is never worse than by that.
    np.testing.assert_allclose(found, exact.min(axis=1), atol=0.02)


def test_a_sample_of_rows_does_not_depend_on_the_files(tmp_path):
    rows = np.arange(40, dtype=np.float16).reshape(20, 2)
    drawn = []
    for sizes in ([20], [7, 13], [1, 9, 0, 10]):
        files, start = {}, 0
        for size in sizes:
            file = tmp_path / f"{len(sizes)}-{len(files)}.parquet"
            vectors.write(file, np.arange(start, start + size), rows[start : start + size])
            files[file], start = size, start + size
        drawn.append(vectors.sample(files, 6, 3, lambda amount, samples: None).tolist())
    assert drawn[0] == drawn[1] == drawn[2]
    assert len({tuple(row) for row in drawn[0]}) == 6
