"""A corpus where it is known what is hard: three colours, some mixed half and half.

Some have a wrong label.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import rows, write_shard
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.metrics import metrics
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.probe.stage import probe
from curate.stages.score.stage import score

# Of a picture's relation to its caption, a target set, or other pictures: they do not say what is
# hard.
OF_OTHER_THINGS = {
    "clip_score",
    "contribution",
    "density",
    "gradient_similarity",
    "target_similarity",
}
METRICS = sorted(set(metrics.load()) - OF_OTHER_THINGS)
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], float)


class ScoredCorpus(NamedTuple):
    """A catalog, and which samples lie between two classes or have a wrong label, bool [n]."""

    catalog: Catalog
    is_boundary: np.ndarray
    is_mislabelled: np.ndarray

    @property
    def is_plain(self) -> np.ndarray:
        return ~self.is_boundary & ~self.is_mislabelled

    def load_scores(self, name: str) -> np.ndarray:
        sql = "select score from scores where scoring = ? order by sample_id"
        return np.array([score for (score,) in rows(self.catalog, sql, name)], float)


def draw_image(colour: np.ndarray, generator: np.random.Generator) -> bytes:
    noise = generator.normal(0, 25, (8, 8, 3)) + generator.normal(0, 12, 3)
    pixels = (colour + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write_colours(
    path: Path, seed: int, is_boundary: np.ndarray, is_mislabelled: np.ndarray
) -> str:
    """A shard with an image for each position of the two masks."""
    generator = np.random.default_rng(seed)
    samples = []
    for position in range(len(is_boundary)):
        class_id = position % 3
        other_class_id = (class_id + 1) % 3
        colour = COLOURS[class_id]
        if is_boundary[position]:
            colour = 0.52 * COLOURS[class_id] + 0.48 * COLOURS[other_class_id]
        label = other_class_id if is_mislabelled[position] else class_id
        image = draw_image(colour, generator)
        samples.append((f"{position:04d}", {"png": image, "cls": b"%d" % label}))
    return str(write_shard(path, samples))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ScoredCorpus:
    """600 images, a tenth on the boundary, a tenth with a wrong label, scored by METRICS."""
    folder = tmp_path_factory.mktemp("corpus")
    positions = np.arange(600)
    is_boundary, is_mislabelled = positions % 10 == 3, positions % 10 == 7
    catalog = Catalog(folder / "catalog")
    train = write_colours(folder / "train.tar", 0, is_boundary, is_mislabelled)
    embed(catalog, [train], encoder="pixels")
    none = np.zeros(300, bool)
    test = write_colours(folder / "test.tar", 1, none, none)
    cluster(catalog, k=3)
    probe(catalog, count=5)
    probe(catalog, fraction=0.7, count=60, epochs=60)  # so long that they memorize
    probe(catalog, model="ridge", test=test)
    probe(catalog, model=["linear", "ridge", "mlp:8", "mlp:32", "mlp:16x16"], folds=5)
    score(catalog, METRICS)
    return ScoredCorpus(catalog, is_boundary, is_mislabelled)


def auc(scores: np.ndarray, is_hard: np.ndarray, is_plain: np.ndarray) -> float:
    """The share of pairs in which the hard one scores higher; ties count half."""
    difference = scores[is_hard][:, None] - scores[is_plain][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def test_every_metric_scores_every_sample(corpus):
    scorings = rows(corpus.catalog, "select scoring from scorings")
    assert {name for (name,) in scorings} == set(METRICS)
    assert rows(corpus.catalog, "select sum(num_null) from scorings") == [(0,)]


@pytest.mark.parametrize("name", sorted({*METRICS} - {"random"}))
def test_what_lies_between_two_classes_scores_high(corpus, name):
    assert auc(corpus.load_scores(name), corpus.is_boundary, corpus.is_plain) > 0.65


@pytest.mark.parametrize("name", sorted({*METRICS} - {"random", "ssl_prototypes"}))
def test_a_wrong_label_scores_high(corpus, name):
    assert auc(corpus.load_scores(name), corpus.is_mislabelled, corpus.is_plain) > 0.8


def test_prototypes_of_clusters_see_no_labels(corpus):
    scores = corpus.load_scores("ssl_prototypes")
    assert 0.4 < auc(scores, corpus.is_mislabelled, corpus.is_plain) < 0.6


def test_random_scores_separate_nothing(corpus):
    scores = corpus.load_scores("random")
    for is_hard in (corpus.is_boundary, corpus.is_mislabelled):
        assert 0.35 < auc(scores, is_hard, corpus.is_plain) < 0.65
