import importlib
import linecache

import numpy as np
import pytest
from conftest import png, rows, write_shard

from curate import distances, vectors
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.metrics import metric, metrics
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.score import score


def scores(catalog: Catalog, scoring: str) -> list[float]:
    return [row[0] for row in rows(catalog, "select score from scores where scoring = ? order by sample_id", scoring)]


def all_vectors(catalog: Catalog) -> np.ndarray:
    return np.concatenate([vectors.read(file).vectors for file in catalog.vector_files("pixels")])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_ssl_prototypes_are_the_distances_of_the_clustering(catalog, distance):
    cluster(catalog, k=4, distance=distance)
    assert score(catalog, "ssl_prototypes") == ["ssl_prototypes"]
    distances = [row[0] for row in rows(catalog, "select distance from assignments order by sample_id")]
    np.testing.assert_allclose(scores(catalog, "ssl_prototypes"), distances, atol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_supervised_prototypes_are_distances_to_the_class_mean(catalog, distance):
    score(catalog, "supervised_prototypes", distance=distance)
    labels = np.array([int(label) for (label,) in rows(catalog, "select label from samples order by sample_id")])
    data = distances.unit(all_vectors(catalog)) if distance == "cosine" else all_vectors(catalog)
    means = np.stack([data[labels == label].mean(axis=0) for label in (0, 1)])
    wanted = (
        1 - (data * distances.unit(means)[labels]).sum(axis=1)
        if distance == "cosine"
        else np.linalg.norm(data - means[labels], axis=1)
    )
    np.testing.assert_allclose(scores(catalog, "supervised_prototypes"), wanted, atol=1e-4)


def test_random_depends_on_the_seed_and_the_sample_alone(catalog):
    score(catalog, ["random"])
    score(catalog, "random", seed=1, name="other")
    first, other = scores(catalog, "random"), scores(catalog, "other")
    assert first != other
    assert len(set(first)) == 30
    assert min(first) >= 0
    assert max(first) < 1
    # The published SplitMix64 sequence for state 0: the numbers must never change between versions.
    assert metrics["random"](np.array([0]), 0)[0] == pytest.approx(first[0], abs=0)


def test_a_sample_without_label_scores_null(tmp_path):
    url = write_shard(
        tmp_path / "a.tar", [("a", {"png": png(1), "cls": b"0"}), ("b", {"png": png(2)}), ("c", {"png": png(3), "cls": b"0"})]
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    score(catalog, "supervised_prototypes")
    assert [value is None for value in scores(catalog, "supervised_prototypes")] == [False, True, False]
    assert rows(catalog, "select num_samples, num_null from scorings") == [(3, 1)]


def test_a_missing_input_names_the_command(catalog):
    with pytest.raises(CurateError, match="no clustering yet: make one with `curate cluster`"):
        score(catalog, "ssl_prototypes")
    with pytest.raises(CurateError, match="no metric called 'el3n'; there are: .*ssl_prototypes"):
        score(catalog, "el3n")
    cluster(catalog, k=2)
    with pytest.raises(CurateError, match="is cosine: make another"):
        score(catalog, "ssl_prototypes", distance="euclidean")


def test_a_metric_is_one_function_with_its_inputs_for_parameters(catalog):
    @metric
    def brightness(vectors: np.ndarray) -> np.ndarray:
        return vectors.mean(axis=1)

    @metric
    def needs_magic(magic: np.ndarray) -> np.ndarray:
        return magic

    try:
        score(catalog, "brightness")
        np.testing.assert_allclose(scores(catalog, "brightness"), distances.unit(all_vectors(catalog)).mean(axis=1), rtol=1e-5)
        with pytest.raises(CurateError, match="asks for 'magic', which is no input; there are: centroids"):
            score(catalog, "needs_magic")
    finally:
        del metrics["brightness"], metrics["needs_magic"]


def test_scores_follow_a_new_clustering_and_nothing_else(catalog, caplog):
    cluster(catalog, k=2)
    score(catalog, "ssl_prototypes")
    with caplog.at_level("INFO", "curate"):
        score(catalog, "ssl_prototypes")
    assert "nothing to do" in caplog.text
    before = scores(catalog, "ssl_prototypes")
    cluster(catalog, k=6)
    score(catalog, "ssl_prototypes")
    assert scores(catalog, "ssl_prototypes") != before
    assert rows(catalog, "select count(*) from scores") == [(30,)]


def test_the_wide_view_has_a_column_for_every_set(catalog):
    cluster(catalog, k=2)
    score(catalog, ["ssl_prototypes", "random"])
    columns = [row[0] for row in rows(catalog, "describe sample_scores")]
    assert columns[-4:] == ["url", "kmeans", "random", "ssl_prototypes"]
    assert rows(catalog, "select count(*) from sample_scores where kmeans is not null and random < 1") == [(30,)]


def test_distance_is_part_of_what_a_scoring_is(catalog):
    @metric
    def length(vectors: np.ndarray) -> np.ndarray:
        return np.linalg.norm(vectors, axis=1)

    try:
        score(catalog, "length", distance="cosine")
        np.testing.assert_allclose(scores(catalog, "length"), 1, rtol=1e-3)
        score(catalog, "length", distance="euclidean")
        assert max(scores(catalog, "length")) > 2
    finally:
        del metrics["length"]


def test_an_edited_metric_scores_anew(catalog, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def mine(sample_ids):\n    return sample_ids * 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for factor in (1.0, 2.0):
        (tmp_path / "mine.py").write_text(f"def mine(sample_ids):\n    return sample_ids * {factor}\n")
        module = importlib.import_module("mine")
        importlib.reload(module)
        linecache.clearcache()
        metric(module.mine)
        score(catalog, "mine")
        assert scores(catalog, "mine")[1] == factor
    del metrics["mine"]


def test_a_name_is_a_column_once(catalog):
    cluster(catalog, k=2)
    for name in ("kmeans", "label", "URL", "Kmeans"):
        with pytest.raises(CurateError, match="already: choose another --name"):
            score(catalog, "random", name=name)
    score(catalog, "random")
    with pytest.raises(CurateError, match="'random' is the name of a scoring already"):
        cluster(catalog, k=2, name="random")


def test_a_metric_of_the_wrong_shape_is_named(catalog):
    @metric
    def whole(vectors: np.ndarray) -> np.ndarray:
        return vectors

    try:
        with pytest.raises(CurateError, match=r"the metric 'whole' gave an array of shape \(10, 192\) for 10 samples"):
            score(catalog, "whole")
    finally:
        del metrics["whole"]


def test_short_distances_keep_their_digits():
    generator = np.random.default_rng(0)
    centroids = distances.unit(generator.standard_normal((5, 512)).astype(np.float32))
    rows = (np.repeat(centroids, 40, axis=0) + 3e-4 / np.sqrt(512) * generator.standard_normal((200, 512))).astype(np.float32)
    exact = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    wanted = 1 - (exact @ distances.unit(centroids.astype(np.float64)).T).max(axis=1)
    found = metrics["ssl_prototypes"](distances.unit(rows), centroids, "cosine")
    np.testing.assert_allclose(found.sum(dtype=np.float64), wanted.sum(), rtol=1e-3)


def test_the_number_fixtures_of_distances():
    x, centroids = np.array([[0.6, 0.8]], np.float32), np.eye(2, dtype=np.float32)[:1]
    assert metrics["ssl_prototypes"](x, centroids, "cosine")[0] == pytest.approx(0.4)
    assert metrics["ssl_prototypes"](x, centroids, "euclidean")[0] == pytest.approx(np.sqrt(0.8))
