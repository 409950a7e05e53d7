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


def test_passes_over_every_row_lower_the_objective_for_any_number_of_workers(catalog):
    found = {}
    for name, options in {"none": {"passes": 0}, "some": {"passes": 5}, "more": {"passes": 5, "workers": 2}}.items():
        cluster(catalog, k=4, sample=4, iterations=1, name=name, **options)
        found[name] = catalog.require("clustering", name)
    assert found["some"]["objective"] < found["none"]["objective"]
    centroids = [np.load(catalog.centroid_file(found[name])) for name in ("some", "more")]
    assert centroids[0].tobytes() == centroids[1].tobytes()


def test_auto_k_is_a_thousandth_within_bounds():
    assert [auto_k(n) for n in (3, 500, 50_000, 10**9)] == [3, 10, 50, 50_000]


def test_nothing_embedded_names_the_command(tmp_path):
    with pytest.raises(CurateError, match="no embedding yet: make one with `curate embed SHARDS`"):
        cluster(Catalog(tmp_path / "empty").create())
    with pytest.raises(CurateError, match="no catalog at"):
        cluster(tmp_path / "nowhere")


def test_a_killed_clustering_goes_on_after_its_last_pass(catalog, monkeypatch):
    from curate.engine import kmeans
    from curate.stages import lloyd

    options = {"k": 4, "sample": 8, "iterations": 1, "passes": 4}
    cluster(catalog, name="whole", **options)
    keep, kept = lloyd.keep, []

    def dying(path, state):
        kept.append(state.passes)
        if state.passes == 3:
            raise KeyboardInterrupt
        return keep(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(lloyd, "keep", dying)
        with pytest.raises(KeyboardInterrupt):
            cluster(catalog, name="killed", **options)
    assert kept == [0, 1, 2, 3]
    monkeypatch.setattr(kmeans, "fit", None)  # what was fitted before is not fitted again
    monkeypatch.setattr(lloyd, "keep", lambda path, state: (kept.append(state.passes), keep(path, state))[1])
    cluster(catalog, name="killed", **options)
    assert kept == [0, 1, 2, 3, 3, 4]
    found = [np.load(catalog.centroid_file(catalog.require("clustering", name))) for name in ("whole", "killed")]
    assert found[0].tobytes() == found[1].tobytes()
    assert len(list((catalog.path / "clusterings").iterdir())) == 2


def test_memory_bounds_the_sample_and_says_so(catalog, caplog):
    with caplog.at_level("INFO", "curate"):
        cluster(catalog, k=3, memory=1 / 256)
    assert "memory: " in caplog.text
    assert rows(catalog, "select sampled_rows from clusterings") == [(30,)]
    with pytest.raises(CurateError, match=r"takes .* of memory, and 0.0 MiB are allowed: raise --memory"):
        cluster(catalog, k=3, memory=1e-6)


def test_a_sample_that_does_not_fit_is_lowered(tmp_path, caplog):
    from curate.stages.cluster import _rows_to_fit_on

    files = {tmp_path / f"{number}.parquet": 1_000 for number in range(10_000)}
    with caplog.at_level("WARNING", "curate"):
        rows_, unbound = (_rows_to_fit_on(files, 1000, 256, None, limit) for limit in (300 << 20, 1 << 40))
        fewer = _rows_to_fit_on(files, 1000, 256, None, 90 << 20)
    assert rows_ == unbound == 65_536
    assert 1000 < fewer < 65_536
    assert "no more fit into 90 MiB (see --memory)" in caplog.text


def test_what_another_process_has_begun_is_left_alone(catalog):
    """It clusters under the same name: ours removes what it began itself, and what nobody will go on with."""
    folder = catalog.path / "clusterings"
    folder.mkdir()
    dead, alive = (folder / f".tmp-0123456789ab-mine-{sign * 16}.begun.npz" for sign in "0f")
    for path in (dead, alive):
        path.touch()
    with catalog.run("cluster", "mine", {}, fingerprint="f" * 64):
        cluster(catalog, k=3, name="mine")
    assert [path.name for path in sorted(folder.iterdir())] == [alive.name, "mine-000003.npy"]
