import numpy as np
import pytest
from conftest import load_vectors, png, rows, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord
from curate.errors import CurateError, OptionError
from curate.stages.cluster import refinement
from curate.stages.cluster import stage as cluster_stage
from curate.stages.cluster.refinement import Checkpoint, load_checkpoint, save_checkpoint
from curate.stages.cluster.stage import auto_k, cluster
from curate.stages.embed.stage import embed
from curate.stages.select.stage import select


def load_clustering(catalog: Catalog, name: str) -> tuple[ClusteringRecord, np.ndarray]:
    """The record of a clustering, and its centroids float32 [k, dim]."""
    record = catalog.require(ClusteringRecord, name)
    return record, np.load(catalog.centroids_file(record))


@pytest.mark.parametrize("num_distinct", [1, 2])
def test_empty_clusters_are_said(tmp_path, caplog, num_distinct):
    samples = [(f"{n:02d}", {"png": png(n % num_distinct)}) for n in range(16)]
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    cluster(catalog, k=8)
    ((num_used,),) = rows(catalog, "select count(distinct cluster_id) from assignments")
    # Two centroids may be so alike that copies of one vector are nearer to either, by rounding.
    assert num_distinct <= num_used <= 2 * num_distinct
    assert f"{8 - num_used} of 8 clusters are empty" in caplog.text
    caplog.clear()
    cluster(catalog, k=num_distinct, name="fitting")
    assert "empty" not in caplog.text


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_objective_is_that_of_the_assignments_in_float64(catalog, distance):
    cluster(catalog, k=4, distance=distance, name="four")
    centroids = load_clustering(catalog, "four")[1].astype(np.float64)
    vectors = load_vectors(catalog).astype(np.float64)
    if distance == "cosine":
        distances = 1 - vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ centroids.T
        nearest = distances.min(axis=1)
        objective = nearest.sum()
    else:
        distances = np.linalg.norm(vectors[:, None] - centroids, axis=2)
        nearest = distances.min(axis=1)
        objective = np.square(nearest).sum()
    assignments = rows(catalog, "select cluster_id, distance from assignments order by sample_id")
    assert [cluster_id for cluster_id, _ in assignments] == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose([distance for _, distance in assignments], nearest, atol=1e-5)
    assert rows(catalog, "select objective, fit_rows, num_samples, k from clusterings") == [
        (pytest.approx(objective, rel=1e-5), 30, 30, 4)
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
    cluster(catalog, k=2, fit_rows=9)
    assert rows(catalog, "select fit_rows, num_samples from clusterings") == [(9, 30)]


def test_iterations_over_every_row_lower_the_objective_for_any_number_of_workers(catalog):
    options = {"k": 4, "fit_rows": 4, "iterations": 1}
    cluster(catalog, full_iterations=0, name="none", **options)
    cluster(catalog, full_iterations=5, name="five", **options)
    cluster(catalog, full_iterations=5, workers=2, name="five-by-two", **options)
    (none, _), (five, centroids), (_, centroids_by_two) = (
        load_clustering(catalog, name) for name in ("none", "five", "five-by-two")
    )
    assert five.objective < none.objective
    assert centroids.tobytes() == centroids_by_two.tobytes()


def test_auto_k_is_a_thousandth_within_bounds():
    assert [auto_k(n) for n in (3, 500, 50_000, 10**9)] == [3, 10, 50, 50_000]


def test_a_clustering_within_a_selection_sees_its_members_only(catalog):
    select(catalog, keep=0.4, strategy="random", name="some")
    assert cluster(catalog, within="some") == "kmeans-in-some"
    record, centroids = load_clustering(catalog, "kmeans-in-some")
    assert (record.k, record.num_samples, record.fit_rows) == (10, 12, 12)
    assert rows(catalog, "select sample_id from assignments order by 1") == rows(
        catalog, "select sample_id from members order by 1"
    )
    cluster(catalog, within="some", workers=2, name="by-two")
    assert load_clustering(catalog, "by-two")[1].tobytes() == centroids.tobytes()
    assert curate.verify(catalog) == []
    with pytest.raises(OptionError, match="--k 13: give auto, or a number from 1 to the 12 samp"):
        cluster(catalog, k=13, within="some")
    select(catalog, keep=0.4, strategy="random", seed=1, name="some")
    sql = "select out_of_date from lineage where name = 'kmeans-in-some'"
    assert rows(catalog, sql) == [(True,)]
    cluster(catalog, within="some")
    assert rows(catalog, sql) == [(False,)]


def test_members_that_an_embedding_lacks_are_in_no_cluster(tmp_path):
    samples = [(f"{position}", {"png": png(position)}) for position in range(6)]
    samples.insert(3, ("broken", {"png": b"no picture"}))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    other = write_shard(tmp_path / "b.tar", [("6", {"png": png(6)})])
    embed(catalog, [str(other)], encoder="pixels@4")
    select(catalog, keep=1.0, strategy="random", name="all")
    cluster(catalog, k=2, within="all", embedding="pixels")
    assert rows(catalog, "select num_samples, k from clusterings") == [(6, 2)]
    select(catalog, keep=1.0, strategy="random", where="shard_id = 0", name="first")
    with pytest.raises(CurateError, match="no sample of the selection 'first' is in the embedding"):
        cluster(catalog, k=2, within="first", embedding="pixels@4")


def test_nothing_embedded_names_the_command(tmp_path):
    with pytest.raises(CurateError, match="no embedding yet: make one with `curate embed SHARDS`"):
        cluster(Catalog(tmp_path / "empty").create())
    with pytest.raises(CurateError, match="no catalog at"):
        cluster(tmp_path / "nowhere")


def test_a_killed_clustering_continues_after_its_last_checkpoint(catalog, monkeypatch):
    options = {"k": 4, "fit_rows": 8, "iterations": 1, "full_iterations": 4}
    cluster(catalog, name="whole", **options)
    saved_iterations = []

    def save(location: str, checkpoint: Checkpoint) -> Checkpoint:
        saved_iterations.append(checkpoint.iterations)
        if saved_iterations == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return save_checkpoint(location, checkpoint)

    for module in (cluster_stage, refinement):
        monkeypatch.setattr(module, "save_checkpoint", save)
    with pytest.raises(KeyboardInterrupt):
        cluster(catalog, name="killed", **options)
    assert saved_iterations == [0, 1, 2, 3]
    monkeypatch.setattr(cluster_stage, "fit_centroids", None)  # the fit is not done again
    cluster(catalog, name="killed", **options)
    assert saved_iterations == [0, 1, 2, 3, 3, 4]
    whole, killed = (load_clustering(catalog, name)[1] for name in ("whole", "killed"))
    assert whole.tobytes() == killed.tobytes()
    assert len(list((catalog.path / "clusterings").iterdir())) == 2


def test_memory_bounds_the_sample_and_says_so(catalog, caplog):
    with caplog.at_level("INFO", "curate"):
        cluster(catalog, k=3, memory=1 / 256)
    assert "memory: " in caplog.text
    assert rows(catalog, "select fit_rows from clusterings") == [(30,)]
    with pytest.raises(
        CurateError, match=r"takes .* of memory, and 0.0 MiB are allowed: raise --memory"
    ):
        cluster(catalog, k=3, memory=1e-6)


def test_a_sample_that_does_not_fit_is_lowered(tmp_path, caplog):
    files = {str(tmp_path / f"{number}.parquet"): 1_000 for number in range(10_000)}

    def fit_rows_within(memory: int) -> int:
        return cluster_stage._choose_fit_rows(files, 1000, 256, None, memory, 1_000)

    with caplog.at_level("WARNING", "curate"):
        assert fit_rows_within(1 << 40) == fit_rows_within(300 << 20) == 65_536
        assert 1000 < fit_rows_within(90 << 20) < 65_536
    assert "no more fit into 90 MiB (see --memory)" in caplog.text


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_checkpoint_that_is_not_whole_is_none(tmp_path, size):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(str(path), Checkpoint(2, np.zeros((3, 4), np.float32)))
    assert load_checkpoint(str(path)).iterations == 2
    path.write_bytes(path.read_bytes()[:size])
    assert load_checkpoint(str(path)) is None


def test_the_checkpoint_of_another_process_is_left_alone(catalog):
    """It clusters under the same name: only checkpoints that no run will read are removed."""
    folder = catalog.path / "clusterings"
    folder.mkdir()
    of_killed_run, of_running_run = (
        folder / f".tmp-0123456789ab-mine-{digit * 16}.begun.npz" for digit in "0f"
    )
    for path in (of_killed_run, of_running_run):
        path.touch()
    with catalog.record_run("cluster", "mine", {}, fingerprint="f" * 64):
        cluster(catalog, k=3, name="mine")
    remaining = [path.name for path in sorted(folder.iterdir())]
    assert remaining == [of_running_run.name, "mine-000003.npy"]
