"""Metrics that compare samples with others: neighbours, captions, a target set."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import load_scores, load_vectors, rows, run_curate, write_shard
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.catalog.sets import check_name
from curate.distances import l2_normalize
from curate.encoders import pixels as pixels_encoder
from curate.errors import CurateError, OptionError
from curate.formatting import label_of_pattern
from curate.stages.embed import inference
from curate.stages.embed.stage import embed
from curate.stages.inputs import references
from curate.stages.probe.stage import probe
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.training.gradients import GradientProjection

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def draw(colour: str, seed: int) -> bytes:
    """A PNG of one colour with noise."""
    noise = np.random.default_rng(seed).normal(0, 30, (8, 8, 3))
    file = io.BytesIO()
    pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def encode_colours(texts: list[str]) -> np.ndarray:
    """The vectors that pictures of the colours without noise would have: float32 [n, 192]."""
    colours = np.array([COLOURS["red" if "red" in text else "blue"] for text in texts], np.float32)
    return np.repeat(colours / 127.5 - 1, 64, axis=1)


def write_pictures(path: Path, colours: list[str], first_seed: int) -> str:
    """A shard of pictures, labelled by colour; every fourth has no caption, every fifth a wrong
    one."""
    other = {"red": "blue", "blue": "red"}
    samples = []
    for number, colour in enumerate(colours):
        members = {"png": draw(colour, first_seed + number), "cls": colour.encode()}
        if number % 4:
            members["txt"] = f"a {other[colour] if number % 5 == 0 else colour} square".encode()
        samples.append((f"{number:03d}", members))
    return str(write_shard(path, samples))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Path:
    """A folder with a catalog of two shards, red and blue in turns, and a shard of red targets."""
    folder = tmp_path_factory.mktemp("coloured")
    turns = ["red", "blue"] * 8
    shards = [write_pictures(folder / f"{n}.tar", turns, 100 * n) for n in range(2)]
    write_pictures(folder / "reds.tar", ["red"] * 6, 900)
    inference.load_text_encoder.cache_clear()  # a process keeps encoders, those of other tests too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels_encoder, "count_words", encode_colours)
        embed(folder / "catalog", shards, encoder="pixels", captions=True, workers=1)
        # Where targets are embedded; here already, in this process.
        embed(
            folder / "catalog" / "test",
            [str(folder / "reds.tar")],
            encoder="pixels",
            captions=True,
            workers=1,
        )
    inference.load_text_encoder.cache_clear()
    return folder


@pytest.fixture
def pictures(coloured, tmp_path, monkeypatch) -> Catalog:
    """A copy of the catalog."""
    monkeypatch.setattr(pixels_encoder, "count_words", encode_colours)
    shutil.copytree(coloured / "catalog", tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def load_unit_vectors(catalog: Catalog) -> np.ndarray:
    return l2_normalize(load_vectors(catalog).astype(np.float64))


def test_density_of_a_corpus_is_by_all_samples_of_all_shards(pictures):
    assert score(pictures, "density", options={"neighbours": "3"}) == ["density-neighbours=3"]
    cosines = load_unit_vectors(pictures) @ load_unit_vectors(pictures).T
    np.fill_diagonal(cosines, -1)
    expected = 1 - np.sort(cosines, axis=1)[:, -3]
    scores = load_scores(pictures, "density-neighbours=3")
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    with pytest.raises(CurateError, match="neighbours=32: give 1 to 31"):
        score(pictures, "density", options={"neighbours": "32"})


def test_density_within_a_selection_looks_for_neighbours_there(pictures):
    select(pictures, keep=1.0, strategy="random", where="label = 'red'", name="reds")
    score(pictures, "density", within="reds", distance="euclidean")
    vectors = load_vectors(pictures)[::2].astype(np.float64)
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    scores = load_scores(pictures, "density-euclidean-in-reds")
    np.testing.assert_allclose(scores[::2], np.sort(distances, axis=1)[:, 10], rtol=1e-5)
    assert scores[1::2] == [None] * 16


def test_a_large_corpus_is_compared_with_a_random_part_of_it_and_that_is_said(
    pictures, monkeypatch, caplog
):
    monkeypatch.setattr(references, "MAX_REFERENCES", 5)
    with caplog.at_level("INFO", "curate"):
        score(pictures, "density", options={"neighbours": "1"}, name="first")
        score(pictures, "density", options={"neighbours": "1"}, name="again")
        score(pictures, "density", options={"neighbours": "1"}, seed=1, name="other")
    assert "neighbours are looked for among 5 of 32 samples, drawn at random" in caplog.text
    first = load_scores(pictures, "first")
    assert first == load_scores(pictures, "again") != load_scores(pictures, "other")
    cosines = load_unit_vectors(pictures) @ load_unit_vectors(pictures).T
    distances = 1 - cosines - 9 * np.eye(32)
    is_among = np.isclose(first, distances, atol=1e-5)  # each is one sample's distance to another
    assert is_among.any(axis=0).all()
    assert is_among.sum(axis=0).tolist() == [1] * 32
    assert is_among.any(axis=1).sum() <= 5


def test_the_clip_score_is_by_the_caption_and_null_without_one(pictures, caplog):
    assert score(pictures, "clip_score") == ["clip_score"]
    assert "8 of 32 samples have no caption, and get no score" in caplog.text
    scores = load_scores(pictures, "clip_score")
    images = load_unit_vectors(pictures)
    captions = rows(pictures, "select caption from samples order by sample_id")
    texts = l2_normalize(encode_colours([caption or "" for (caption,) in captions]))
    for number, (caption,) in enumerate(captions):
        if caption is None:
            assert scores[number] is None
        else:
            assert scores[number] == pytest.approx(images[number] @ texts[number], abs=1e-3)
    # Captions of the other colour lie below all others.
    labels = ["red", "blue"] * 16
    is_right = [
        label in (caption or "") for label, (caption,) in zip(labels, captions, strict=True)
    ]
    right = [value for value, right in zip(scores, is_right, strict=True) if right]
    wrong = [v for v, right in zip(scores, is_right, strict=True) if v is not None and not right]
    assert max(wrong) < min(right)
    assert rows(pictures, "select num_samples, num_null from scorings") == [(32, 8)]


def test_captions_that_were_not_embedded_or_are_not_there_are_named(coloured, tmp_path):
    bare = Catalog(tmp_path / "bare")
    embed(bare, [str(coloured / "0.tar")], encoder="pixels", workers=1)
    message = "no vectors of captions: make one with `curate embed SHARDS --captions --name NAME`"
    with pytest.raises(CurateError, match=message):
        score(bare, "clip_score")
    uncaptioned = Catalog(tmp_path / "uncaptioned")
    shard = write_shard(tmp_path / "a.tar", [("a", {"png": draw("red", 0)})])
    embed(uncaptioned, [str(shard)], encoder="pixels", captions=True, workers=1)
    with pytest.raises(CurateError, match="no sample of the embedding 'pixels' has a caption"):
        score(uncaptioned, "clip_score")
    assert rows(uncaptioned, "select count(*) from scorings") == [(0,)]


def test_an_encoder_without_one_space_for_both_has_no_clip_score(coloured, tmp_path):
    """Words are counted, 256 numbers to the images' 192."""
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(coloured / "0.tar")], encoder="pixels@8", captions=True, workers=1)
    with pytest.raises(CurateError, match="embed by an encoder with one space for both"):
        score(catalog, "clip_score")


def test_a_target_as_shards_or_as_a_catalog_gives_the_same_scores(pictures, coloured, tmp_path):
    target = str(coloured / "reds.tar")
    assert score(pictures, "target_similarity", target=target) == ["target_similarity-reds"]
    scores = load_scores(pictures, "target_similarity-reds")
    other = Catalog(tmp_path / "other")
    embed(other, [target], encoder="pixels", captions=True, workers=1)
    expected = (load_unit_vectors(pictures) @ load_unit_vectors(other).T).max(axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert min(scores[::2]) > max(scores[1::2])  # the red ones
    (name,) = score(pictures, "target_similarity", target=str(other.path))
    assert name == "target_similarity-other"
    assert load_scores(pictures, name) == scores


@pytest.mark.parametrize(
    ("pattern", "label"),
    [
        ("folder/reds.tar", "reds"),
        ("s3://bucket/imagenet-*.tar", "imagenet"),
        ("train-{000..004}.tar", "train-000..004"),
        ("/data/other-catalog/", "other-catalog"),
        ("*.tar", "shards"),
    ],
)
def test_a_set_is_named_after_the_pattern_of_its_target(pattern, label):
    assert label_of_pattern(pattern) == label
    assert check_name(label) == label


def test_a_target_that_has_grown_is_scored_anew(pictures, coloured, tmp_path, caplog):
    other = Catalog(tmp_path / "other")
    embed(other, [str(coloured / "reds.tar")], encoder="pixels", captions=True, workers=1)
    (name,) = score(pictures, "target_similarity", target=str(other.path))
    before = load_scores(pictures, name)
    with caplog.at_level("INFO", "curate"):
        score(pictures, "target_similarity", target=str(other.path))
    assert f"nothing to do: '{name}'" in caplog.text
    blues = write_pictures(tmp_path / "blues.tar", ["blue"] * 3, 950)
    embed(other, [blues], encoder="pixels", captions=True, workers=1)
    score(pictures, "target_similarity", target=str(other.path))
    assert load_scores(pictures, name)[1] > before[1]


def test_what_is_wrong_with_a_target_is_one_line(pictures, coloured, tmp_path):
    with pytest.raises(OptionError, match="name it with --target SHARDS|CATALOG"):
        score(pictures, "target_similarity")
    with pytest.raises(OptionError, match="--target is for metrics such as target_similarity"):
        score(pictures, "random", target=str(coloured / "reds.tar"))
    with pytest.raises(CurateError, match="--target: it is this catalog itself"):
        score(pictures, "target_similarity", target=str(pictures.path))
    other = Catalog(tmp_path / "other")
    embed(other, [str(coloured / "reds.tar")], encoder="pixels@4", workers=1)
    with pytest.raises(
        CurateError,
        match="has no embedding like 'pixels': embed it by `.* --encoder pixels --captions`",
    ):
        score(pictures, "target_similarity", target=str(other.path))
    empty = str(write_shard(tmp_path / "empty.tar", []))
    with pytest.raises(CurateError, match="--target: no sample of .* could be embedded"):
        score(pictures, "target_similarity", target=empty)
    with pytest.raises(CurateError, match="no shard"):
        score(pictures, "target_similarity", target=str(tmp_path / "nothing.tar"))
    assert rows(pictures, "select count(*) from scorings") == [(0,)]


def test_gradients_are_compared_by_a_probe_that_kept_them(pictures, coloured):
    with pytest.raises(
        CurateError, match="make one with `curate probe --gradients 512 --test SHARDS`"
    ):
        score(pictures, "gradient_similarity")
    name = probe(
        pictures, test=[str(coloured / "reds.tar")], gradients=64, count=2, epochs=1, model="linear"
    )
    assert name == "linear-epochs1-gradients64"
    score(pictures, ["gradient_similarity", "el2n"])
    scores = load_scores(pictures, "gradient_similarity")
    assert np.mean(scores[::2]) > np.mean(scores[1::2])  # the targets are red
    assert rows(pictures, "select num_null, reliability is null from scorings") == [(0, False)] * 2


def test_projected_gradients_rank_as_exact_ones(pictures, coloured, monkeypatch):
    """Instead of the projection, the gradient itself."""

    def flatten(self, logits, features, labels):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = powers / powers.sum(axis=1, keepdims=True) - np.eye(2)[labels]
        with_bias = np.pad(features, ((0, 0), (0, 1)), constant_values=1)
        return np.einsum("nc,nd->ncd", errors, with_bias).reshape(len(labels), -1)

    options = {"test": [str(coloured / "reds.tar")], "count": 2, "epochs": 1, "model": "mlp:8"}
    probe(pictures, **options, gradients=2000, name="projected")
    score(pictures, "gradient_similarity", probe="projected", name="by_projections")
    monkeypatch.setattr(GradientProjection, "__call__", flatten)
    probe(pictures, **options, gradients=1, name="exact")
    score(pictures, "gradient_similarity", probe="exact", name="by_gradients")
    projected, exact = (load_scores(pictures, f"by_{n}") for n in ("projections", "gradients"))
    np.testing.assert_allclose(projected, exact, atol=0.1)
    assert np.corrcoef(projected, exact)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "are compared with those of a target set: give its --test"),
        ({"test": "a.tar", "folds": 2}, "are of models of all samples"),
        ({"test": "a.tar", "fraction": 0.5}, "are of models of all samples"),
        ({"test": "a.tar", "model": ["mlp", "ridge"]}, "ridge is solved in closed form"),
    ],
)
def test_gradients_need_a_target_and_models_that_are_trained_on_all(pictures, options, message):
    with pytest.raises(OptionError, match=message):
        probe(pictures, gradients=8, **options)


def test_a_caption_file_that_is_gone_is_named(pictures):
    Path(pictures.caption_file("pixels", 0)).unlink()
    with pytest.raises(CurateError, match="captions/00000000.parquet' is gone"):
        score(pictures, "clip_score")
    assert rows(pictures, "select count(*) from scores") == [(0,)]


def test_metrics_are_listed_with_what_they_need():
    listed = run_curate("list", "metrics").stdout
    lines = {line.split()[0]: line for line in listed.splitlines()[2:]}
    assert "--captions" in lines["clip_score"]
    assert "--target SHARDS|CATALOG" in lines["target_similarity"]
    assert "curate probe --gradients 512 --test SHARDS" in lines["gradient_similarity"]
    assert "neighbours=10" in lines["density"]
