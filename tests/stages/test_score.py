import importlib
import linecache

import numpy as np
import pytest
from conftest import load_scores, load_vectors, members, png, rows, write_corpus, write_shard

from curate import distances
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.metrics import metric, metrics
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.score import stage as score_stage
from curate.stages.score.stage import score
from curate.stages.select.stage import select


@pytest.fixture(autouse=True)
def _remove_registered_metrics():
    """The metrics that a test registers are gone after it."""
    built_in = set(metrics.load())
    yield
    for name in set(metrics) - built_in:
        del metrics[name]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_ssl_prototypes_are_the_distances_of_the_clustering(catalog, distance, monkeypatch):
    cluster(catalog, k=4, distance=distance)
    select(catalog, keep=0.5, strategy="random", name="half")
    expected = rows(catalog, "select sample_id, distance from assignments order by sample_id")
    monkeypatch.setattr(score_stage, "map_shards", None)  # they are copied, not computed again
    assert score(catalog, "ssl_prototypes") == ["ssl_prototypes"]
    assert load_scores(catalog, "ssl_prototypes") == [distance for _, distance in expected]
    (name,) = score(catalog, "ssl_prototypes", clustering="kmeans", within="half")
    kept = set(members(catalog, "half"))
    within = [distance if sample_id in kept else None for sample_id, distance in expected]
    assert load_scores(catalog, name) == within
    assert rows(catalog, "select num_samples, num_null from scorings order by 2") == [
        (30, 0),
        (30, 15),
    ]
    monkeypatch.undo()
    monkeypatch.setattr(score_stage, "_ASSIGNED_COLUMNS", {})
    assert score(catalog, "ssl_prototypes", name="computed") == ["computed"]
    assert load_scores(catalog, "computed") == load_scores(catalog, "ssl_prototypes")


def test_samples_that_came_after_the_clustering_are_scored_too(tmp_path):
    urls = write_corpus(tmp_path / "corpus")
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, urls[:2], encoder="pixels")
    cluster(catalog, k=4)
    embed(catalog, urls, encoder="pixels")
    score(catalog, "ssl_prototypes")
    scores = load_scores(catalog, "ssl_prototypes")
    assert len(scores) == 30
    assert None not in scores


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_supervised_prototypes_are_distances_to_the_class_mean(catalog, distance):
    (name,) = score(catalog, "supervised_prototypes", distance=distance)
    samples = rows(catalog, "select label from samples order by sample_id")
    labels = np.array([int(label) for (label,) in samples])
    vectors = load_vectors(catalog)
    if distance == "cosine":
        vectors = distances.l2_normalize(vectors)
    means = np.stack([vectors[labels == label].mean(axis=0) for label in (0, 1)])
    if distance == "cosine":
        expected = 1 - (vectors * distances.l2_normalize(means)[labels]).sum(axis=1)
    else:
        expected = np.linalg.norm(vectors - means[labels], axis=1)
    np.testing.assert_allclose(load_scores(catalog, name), expected, atol=1e-4)


def test_random_depends_on_the_seed_and_the_sample_alone(catalog):
    score(catalog, ["random"])
    score(catalog, "random", seed=1, name="other")
    first = load_scores(catalog, "random")
    assert first != load_scores(catalog, "other")
    assert len(set(first)) == 30
    assert min(first) >= 0
    assert max(first) < 1
    # The published SplitMix64 sequence for state 0: the numbers must never change between versions.
    assert metrics["random"](np.array([0]), 0)[0] == pytest.approx(first[0], abs=0)


def test_a_sample_without_label_scores_null(tmp_path):
    url = write_shard(
        tmp_path / "a.tar",
        [
            ("a", {"png": png(1), "cls": b"0"}),
            ("b", {"png": png(2)}),
            ("c", {"png": png(3), "cls": b"0"}),
        ],
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    score(catalog, "supervised_prototypes")
    is_null = [score is None for score in load_scores(catalog, "supervised_prototypes")]
    assert is_null == [False, True, False]
    assert rows(catalog, "select num_samples, num_null from scorings") == [(3, 1)]


def test_a_missing_input_names_the_command(catalog):
    with pytest.raises(CurateError, match="no clustering yet: make one with `curate cluster`"):
        score(catalog, "ssl_prototypes")
    with pytest.raises(OptionError, match="no metric called 'el3n'; there are: .*ssl_prototypes"):
        score(catalog, "el3n")
    cluster(catalog, k=2)
    with pytest.raises(OptionError, match="is cosine: make another"):
        score(catalog, "ssl_prototypes", distance="euclidean")


def test_a_metric_is_one_function_with_its_inputs_for_parameters(catalog):
    @metric
    def brightness(vectors: np.ndarray) -> np.ndarray:
        return vectors.mean(axis=1)

    @metric
    def needs_magic(magic: np.ndarray) -> np.ndarray:
        return magic

    score(catalog, "brightness")
    means = distances.l2_normalize(load_vectors(catalog)).mean(axis=1)
    np.testing.assert_allclose(load_scores(catalog, "brightness"), means, rtol=1e-5)
    with pytest.raises(
        OptionError,
        match="asks for 'magic', which is no input and no column of this catalog; there",
    ):
        score(catalog, "needs_magic")


def test_scores_follow_a_new_clustering_and_nothing_else(catalog, caplog):
    cluster(catalog, k=2)
    score(catalog, "ssl_prototypes")
    with caplog.at_level("INFO", "curate"):
        score(catalog, "ssl_prototypes")
    assert "nothing to do" in caplog.text
    before = load_scores(catalog, "ssl_prototypes")
    cluster(catalog, k=6)
    score(catalog, "ssl_prototypes")
    assert load_scores(catalog, "ssl_prototypes") != before
    assert rows(catalog, "select count(*) from scores") == [(30,)]


def test_the_wide_view_has_a_column_for_every_set(catalog):
    cluster(catalog, k=2)
    score(catalog, ["ssl_prototypes", "random"])
    columns = [row[0] for row in rows(catalog, "describe sample_scores")]
    assert columns[-4:] == ["url", "kmeans", "random", "ssl_prototypes"]
    sql = "select count(*) from sample_scores where kmeans is not null and random < 1"
    assert rows(catalog, sql) == [(30,)]


def test_distance_is_part_of_what_a_scoring_is(catalog):
    @metric
    def length(vectors: np.ndarray) -> np.ndarray:
        return np.linalg.norm(vectors, axis=1)

    score(catalog, "length", distance="cosine")
    np.testing.assert_allclose(load_scores(catalog, "length"), 1, rtol=1e-3)
    score(catalog, "length", distance="euclidean", name="length")
    assert max(load_scores(catalog, "length")) > 2


def test_no_two_scorings_share_a_default_name(catalog):
    """The options that were given are in it, if the metric uses them."""
    cluster(catalog, k=2)
    cluster(catalog, k=3, distance="euclidean", name="three")
    options = [
        {"distance": "euclidean"},
        {"distance": "cosine"},
        {"embedding": "pixels"},
        {"seed": 1},
    ]
    names = [score(catalog, "supervised_prototypes", **option)[0] for option in options]
    assert names[:2] == ["supervised_prototypes-euclidean", "supervised_prototypes"]
    assert names[2:] == ["supervised_prototypes-pixels", "supervised_prototypes"]
    mixed = score(catalog, ["ssl_prototypes", "random"], clustering="three", seed=1)
    assert mixed == ["ssl_prototypes-three", "random-seed1"]
    assert score(catalog, "ssl_prototypes", clustering="kmeans") == ["ssl_prototypes-kmeans"]
    first, second = (load_scores(catalog, f"ssl_prototypes-{name}") for name in ("kmeans", "three"))
    assert first != second


def test_a_corpus_within_the_corpus_is_scored_as_if_it_were_all(tmp_path):
    """The same scores as those of a catalog that has nothing else; the others are NULL."""
    first_shards = write_corpus(tmp_path / "corpus", num_shards=1)
    alone, catalog = Catalog(tmp_path / "alone"), Catalog(tmp_path / "catalog")
    embed(alone, first_shards, encoder="pixels")
    embed(catalog, write_corpus(tmp_path / "corpus"), encoder="pixels")
    select(catalog, keep=1.0, strategy="random", where="shard_id = 0", name="small")
    metrics_to_score = ["ssl_prototypes", "supervised_prototypes", "random"]
    for small, within in ((alone, None), (catalog, "small")):
        cluster(small, k=3, within=within)
        names = score(small, metrics_to_score, within=within)
    assert names == [f"{metric}-in-small" for metric in metrics_to_score]
    for name in metrics_to_score:
        scores = load_scores(catalog, f"{name}-in-small")
        np.testing.assert_allclose(np.array(scores[:10]), load_scores(alone, name), atol=1e-6)
        assert scores[10:] == [None] * 20
    sql = "select cluster_id from assignments order by sample_id"
    assert rows(catalog, sql) == rows(alone, sql)


def test_a_scoring_within_takes_the_clustering_within(catalog):
    select(catalog, keep=0.5, strategy="random", name="half")
    cluster(catalog, k=2)
    with pytest.raises(
        CurateError,
        match="no clustering within 'half': make one with `curate cluster --within half`",
    ):
        score(catalog, "ssl_prototypes", within="half")
    assert cluster(catalog, k=2, within="half") == "kmeans-in-half"
    score(catalog, "ssl_prototypes")
    score(catalog, "ssl_prototypes", within="half")
    sql = "select scoring, source, num_null from scorings order by scoring"
    assert rows(catalog, sql) == [
        ("ssl_prototypes", "kmeans", 0),
        ("ssl_prototypes-in-half", "kmeans-in-half", 15),
    ]
    # As prototypes of all the corpus see the half.
    (name,) = score(catalog, "ssl_prototypes", within="half", clustering="kmeans")
    assert name == "ssl_prototypes-kmeans-in-half"
    sql = (
        "select count(*), count(half.score), max(abs(half.score - whole.score)) "
        "from scores as half join scores as whole using (sample_id) "
        "where half.scoring = ? and whole.scoring = 'ssl_prototypes'"
    )
    assert rows(catalog, sql, name) == [(30, 15, 0.0)]


def test_a_scoring_within_follows_its_selection(catalog, caplog):
    select(catalog, keep=0.5, strategy="random", name="half")
    score(catalog, "random", within="half")
    first = load_scores(catalog, "random-in-half")
    select(catalog, keep=0.5, strategy="random", seed=1, name="half")
    sql = "select out_of_date from lineage where name = 'random-in-half'"
    assert rows(catalog, sql) == [(True,)]
    score(catalog, "random", within="half")
    assert load_scores(catalog, "random-in-half") != first
    assert rows(catalog, sql) == [(False,)]
    with caplog.at_level("INFO", "curate"):
        score(catalog, "random", within="half")
    assert "nothing to do: 'random-in-half'" in caplog.text
    with pytest.raises(CurateError, match="no selection called 'none'; there are: half"):
        score(catalog, "random", within="none")


def test_an_edited_metric_scores_anew(catalog, tmp_path, monkeypatch):
    code = "def mine(sample_ids):\n    return sample_ids * {factor}\n"
    (tmp_path / "mine.py").write_text(code.format(factor=1.0))
    monkeypatch.syspath_prepend(tmp_path)
    for factor in (1.0, 2.0):
        (tmp_path / "mine.py").write_text(code.format(factor=factor))
        module = importlib.import_module("mine")
        importlib.reload(module)
        linecache.clearcache()
        metric(module.mine)
        score(catalog, "mine")
        assert load_scores(catalog, "mine")[1] == factor


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

    with pytest.raises(
        CurateError,
        match=r"the metric 'whole' gave an array of shape \(10, 192\) for 10 samples",
    ):
        score(catalog, "whole")


def test_short_distances_keep_their_digits():
    generator = np.random.default_rng(0)
    centroids = distances.l2_normalize(generator.standard_normal((5, 512)).astype(np.float32))
    noise = 3e-4 / np.sqrt(512) * generator.standard_normal((200, 512))
    vectors = (np.repeat(centroids, 40, axis=0) + noise).astype(np.float32)
    exact_vectors = vectors.astype(np.float64)
    exact_vectors /= np.linalg.norm(exact_vectors, axis=1, keepdims=True)
    exact_centroids = distances.l2_normalize(centroids.astype(np.float64))
    expected = 1 - (exact_vectors @ exact_centroids.T).max(axis=1)
    scores = metrics["ssl_prototypes"](distances.l2_normalize(vectors), centroids, "cosine")
    np.testing.assert_allclose(scores.sum(dtype=np.float64), expected.sum(), rtol=1e-3)


def test_the_length_of_a_vector_matters_to_the_euclidean_distance_alone():
    """Two vectors of one direction: by cosine as near to the prototype, whatever their lengths."""
    ssl_prototypes = metrics["ssl_prototypes"]
    vectors = np.array([[0.6, 0.8], [6, 8], [0, 1]], np.float32)
    centroids = np.array([[0.0, 1.0]], np.float32)
    by_cosine = ssl_prototypes(distances.normalize_rows(vectors, "cosine"), centroids, "cosine")
    np.testing.assert_allclose(by_cosine, [0.2, 0.2, 0], atol=1e-6)
    by_length = ssl_prototypes(vectors, centroids, "euclidean")
    np.testing.assert_allclose(by_length, [np.sqrt(0.4), np.sqrt(85), 0], rtol=1e-6)


def test_the_number_fixtures_of_distances():
    ssl_prototypes = metrics["ssl_prototypes"]
    vectors, centroids = np.array([[0.6, 0.8]], np.float32), np.eye(2, dtype=np.float32)[:1]
    assert ssl_prototypes(vectors, centroids, "cosine")[0] == pytest.approx(0.4)
    assert ssl_prototypes(vectors, centroids, "euclidean")[0] == pytest.approx(np.sqrt(0.8))
