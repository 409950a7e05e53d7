import numpy as np
import pytest
from conftest import rows

from curate import vectors
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.stages.cluster import auto_k, cluster


def all_vectors(catalog: Catalog) -> np.ndarray:
    return np.concatenate([vectors.read(file).vectors for file in catalog.vector_files("pixels")]).astype(np.float64)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_objective_is_that_of_the_assignments_in_float64(catalog, distance):
    cluster(catalog, k=4, distance=distance, name="four")
    centroids = np.load(catalog.centroid_file(catalog.require("clustering", "four"))).astype(np.float64)
    data = all_vectors(catalog)
    data = data / np.linalg.norm(data, axis=1, keepdims=True) if distance == "cosine" else data
    exact = 1 - data @ centroids.T if distance == "cosine" else np.linalg.norm(data[:, None] - centroids, axis=2)
    found = rows(catalog, "select cluster_id, distance from assignments order by sample_id")
    assert [row[0] for row in found] == exact.argmin(axis=1).tolist()
    np.testing.assert_allclose([row[1] for row in found], exact.min(axis=1), atol=1e-5)
    wanted = exact.min(axis=1).sum() if distance == "cosine" else np.square(exact.min(axis=1)).sum()
    assert rows(catalog, "select objective, sampled_rows, num_samples, k from clusterings") == [
        (pytest.approx(wanted, rel=1e-5), 30, 30, 4)
    ]


def test_the_same_arguments_do_nothing_and_others_replace(catalog, caplog):
    cluster(catalog, k=3)
    first = rows(catalog, "select * from assignments order by sample_id")
    with caplog.at_level("INFO", "curate"):
        cluster(catalog, k=3)
    assert "nothing to do" in caplog.text
    cluster(catalog, k=5)
    assert rows(catalog, "select k from clusterings") == [(5,)]
    assert rows(catalog, "select count(*) from assignments") == [(30,)]
    cluster(catalog, k=3)
    assert rows(catalog, "select * from assignments order by sample_id") == first


def test_a_sample_of_rows_is_recorded(catalog):
    cluster(catalog, k=2, sample=9)
    assert rows(catalog, "select sampled_rows, num_samples from clusterings") == [(9, 30)]


def test_auto_k_is_a_thousandth_within_bounds():
    assert [auto_k(n) for n in (3, 500, 50_000, 10**9)] == [3, 10, 50, 50_000]


def test_nothing_embedded_names_the_command(tmp_path):
    with pytest.raises(CurateError, match="no embedding yet: make one with `curate embed SHARDS`"):
        cluster(Catalog(tmp_path / "empty").create())
    with pytest.raises(CurateError, match="no catalog at"):
        cluster(tmp_path / "nowhere")
