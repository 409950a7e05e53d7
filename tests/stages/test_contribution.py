"""Contributions to what is held out: the metric, and how even they are in an audit."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import load_scores, write_shard
from PIL import Image

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.metrics.contribution import contribution
from curate.stages.audit.measures import contribution_curve, measure_evenness

WRONG = 12  # of 120 labels


def write_colours(folder: Path, name: str, count: int, seed: int, num_wrong: int = 0) -> str:
    """A shard of two colours with noise; the labels of the first samples are the other's."""
    generator = np.random.default_rng(seed)
    samples = []
    for position in range(count):
        colour = position % 2
        pixels = 90 + 70 * np.array([colour, 0, 1 - colour]) + generator.normal(0, 20, (4, 4, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="PNG")
        label = colour if position >= num_wrong else 1 - colour
        members = {"png": file.getvalue(), "cls": str(label).encode()}
        samples.append((f"{name}{position:03d}", members))
    return str(write_shard(folder / f"{name}.tar", samples))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Catalog:
    """120 images with a tenth of the labels wrong, a probe with held-out ones, and its scoring."""
    folder = tmp_path_factory.mktemp("coloured")
    catalog = Catalog(folder / "catalog")
    shard = write_colours(folder, "a", 120, 0, WRONG)
    curate.embed(catalog, [shard], encoder="pixels@4", workers=1)
    curate.select(catalog, keep=0.5, strategy="random", name="half")
    with pytest.raises(CurateError, match="make one with `curate probe --test SHARDS`"):
        curate.score(catalog, "contribution")
    test = write_colours(folder, "test", 40, 1)
    options = {"model": "linear", "count": 2, "epochs": 3, "test": test}
    curate.probe(catalog, **options)
    curate.probe(catalog, within="half", name="alone", **options)
    curate.score(catalog, "contribution")
    return catalog


def test_wrong_labels_hurt_what_is_held_out_and_right_ones_help(coloured):
    scores = np.array(load_scores(coloured, "contribution"))
    assert (scores[:WRONG] < 0).all()
    assert (scores[WRONG:] > 0).mean() > 0.9


def test_the_score_is_the_mean_over_models():
    values = np.array([[1, 3], [-2, 0], [np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(contribution(values), [2, -1, np.nan])


def test_an_audit_says_how_even_contributions_are_before_and_after_pruning(coloured):
    before = curate.audit(coloured, "half", seeds=2)
    assert [row.population for row in before.contributions] == ["all", "kept", "random"]
    scores = np.array(load_scores(coloured, "contribution"))
    of_all = before.contributions[0]
    assert of_all.effective_share == pytest.approx(
        scores.sum() ** 2 / (len(scores) * np.square(scores).sum())
    )
    assert of_all.similarity == pytest.approx(scores.mean() / scores.std())
    assert of_all.negative_share == pytest.approx((scores < 0).mean())
    curate.score(coloured, "contribution", within="half", probe="alone", name="alone")
    after = curate.audit(coloured, "half", seeds=2)
    assert [row.population for row in after.contributions][-1] == "kept alone"
    assert after.contributions[:3] == before.contributions
    assert [picture.name for picture in after.pictures] == [
        "audit-half-by_label.png",
        "audit-half-by_label-contributions.png",
    ]
    assert "kept alone" in Path(curate.report(coloured, thumbnails=0)).read_text()


def test_evenness_by_hand():
    even, uneven = np.full(5, 2.0), np.array([4.0, 0, 0, 0])
    assert measure_evenness(even)[1:] == (2, 0, 1, 0)
    assert measure_evenness(uneven).effective_share == 1 / 4
    mixed = measure_evenness(np.array([3.0, -1, np.nan]))
    assert mixed == (2, 1, 0.5, 1 / 5, 0.5)
    assert measure_evenness(np.array([1.0, -3])).effective_share == 0
    assert measure_evenness(np.array([np.nan])) is None


def test_the_curve_is_the_diagonal_where_all_are_equal_and_falls_where_samples_hurt():
    even = contribution_curve(np.full(10, 0.3))
    np.testing.assert_allclose(even, np.linspace(0, 1, 101), atol=1e-12)
    curve = contribution_curve(np.array([2.0, -1, 1, np.nan, 2]))
    np.testing.assert_allclose(curve[[0, 25, 50, 100]], [0, -1 / 6, 0, 4 / 6], atol=1e-12)
    assert contribution_curve(np.zeros(3)).tolist() == [0] * 101
