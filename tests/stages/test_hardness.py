"""One world where it is known what is hard: three colours, some mixed half and half, some with a wrong label."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import rows, write_shard
from PIL import Image

from curate.catalog import Catalog
from curate.metrics import metrics
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.probe import probe
from curate.stages.score import score

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], float)


class World(NamedTuple):
    catalog: Catalog
    boundary: np.ndarray
    flipped: np.ndarray


def picture(colour: np.ndarray, generator: np.random.Generator) -> bytes:
    pixels = (colour + generator.normal(0, 25, (8, 8, 3)) + generator.normal(0, 12, 3)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def shard(path: Path, count: int, seed: int, boundary: np.ndarray, flipped: np.ndarray) -> str:
    generator = np.random.default_rng(seed)
    samples = []
    for place in range(count):
        label = place % 3
        other = (label + 1) % 3
        colour = 0.52 * COLOURS[label] + 0.48 * COLOURS[other] if boundary[place] else COLOURS[label]
        told = other if flipped[place] else label
        samples.append((f"{place:04d}", {"png": picture(colour, generator), "cls": b"%d" % told}))
    return str(write_shard(path, samples))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """600 pictures, every tenth on the boundary, every tenth flipped, scored by every metric that there is."""
    folder = tmp_path_factory.mktemp("world")
    places = np.arange(600)
    boundary, flipped, none = places % 10 == 3, places % 10 == 7, np.zeros(600, bool)
    catalog = Catalog(folder / "catalog")
    embed(catalog, [shard(folder / "train.tar", 600, 0, boundary, flipped)], encoder="pixels")
    test = shard(folder / "test.tar", 300, 1, none, none)
    cluster(catalog, k=3)
    probe(catalog, count=5)
    probe(catalog, fraction=0.7, count=60, epochs=60)  # so long that they memorize
    probe(catalog, model="ridge", test=test)
    probe(catalog, model=["linear", "ridge", "mlp:8", "mlp:32", "mlp:16x16"])
    score(catalog, sorted(metrics.load()))
    return World(catalog, boundary, flipped)


def auc(scores: np.ndarray, hard: np.ndarray, others: np.ndarray) -> float:
    """The share of pairs in which the hard one scores higher; ties count half."""
    difference = scores[hard][:, None] - scores[others][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def scores_of(world: World, name: str) -> np.ndarray:
    found = rows(world.catalog, "select score from scores where scoring = ? order by sample_id", name)
    return np.array([row[0] for row in found], float)


def test_every_metric_is_in_the_world(world):
    assert {row[0] for row in rows(world.catalog, "select scoring from scorings")} == set(metrics.load())
    assert rows(world.catalog, "select sum(num_null) from scorings") == [(0,)]


@pytest.mark.parametrize("name", sorted(set(metrics.load()) - {"random"}))
def test_what_lies_between_two_classes_scores_high(world, name):
    assert auc(scores_of(world, name), world.boundary, ~world.boundary & ~world.flipped) > 0.65


@pytest.mark.parametrize("name", sorted(set(metrics.load()) - {"random", "ssl_prototypes"}))
def test_a_wrong_label_scores_high(world, name):
    assert auc(scores_of(world, name), world.flipped, ~world.boundary & ~world.flipped) > 0.8


def test_prototypes_of_clusters_see_no_labels(world):
    assert 0.4 < auc(scores_of(world, "ssl_prototypes"), world.flipped, ~world.boundary & ~world.flipped) < 0.6


def test_the_baseline_knows_nothing(world):
    plain = ~world.boundary & ~world.flipped
    for hard in (world.boundary, world.flipped):
        assert 0.35 < auc(scores_of(world, "random"), hard, plain) < 0.65
