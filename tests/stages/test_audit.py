"""What a selection leaves of groups, against random; and how alike selections are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scoring, members, png, rows, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.catalog.records import AuditRecord
from curate.errors import CurateError, OptionError
from curate.formats.vectors import write_vectors
from curate.random_hash import random_bits
from curate.stages.audit.measures import effective_number, kl_divergence, measure_coverage
from curate.stages.audit.stage import StarvedGroupsError
from curate.stages.embed.stage import embed
from curate.stages.sample_groups import are_starved
from curate.stages.select.stage import select

CLASSES = {"common": 200, "usual": 120, "rare": 80}


@pytest.fixture(scope="module")
def skewed_once(tmp_path_factory) -> Path:
    """400 samples of three classes, whose images are near three colours.

    Samples of the rare class score lowest, with few exceptions; `shade` is a column of numbers.
    """
    folder = tmp_path_factory.mktemp("skewed")
    labels = np.repeat(list(CLASSES), list(CLASSES.values()))
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    samples = []
    for position, label in enumerate(labels[order]):
        fields = {"shade": float(generator.uniform()), "site": "north" if position < 300 else "s"}
        samples.append((f"{position:03d}", {"png": png(0, (2, 2)), "cls": label.encode()}))
        samples[-1][1]["json"] = json.dumps(fields).encode()
    catalog = Catalog(folder / "catalog")
    shard = str(write_shard(folder / "a.tar", samples))
    embed(catalog, [shard], encoder="pixels@2", columns="all", workers=1)
    centre = {label: np.eye(12)[index] for index, label in enumerate(CLASSES)}
    vectors = np.stack([centre[label] for label in labels[order]])
    vectors += 0.05 * generator.standard_normal(vectors.shape)
    (file,) = catalog.vector_files("pixels@2")
    write_vectors(file, np.arange(len(vectors)), vectors.astype(np.float32))
    level = {"common": 1.0, "usual": 0.8, "rare": 0.0}
    scores = {
        index: level[label] + float(generator.uniform())
        for index, label in enumerate(labels[order])
    }
    add_scoring(catalog, "toy", scores)
    curate.cluster(catalog, k=3, seed=1)
    for strategy in ("hardest", "random"):
        select(catalog, keep=0.3, scoring="toy", strategy=strategy, balance=0, name=strategy)
    return catalog.path


@pytest.fixture
def skewed(skewed_once, tmp_path) -> Catalog:
    shutil.copytree(skewed_once, tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def test_the_audit_of_the_hardest_flags_a_class_that_the_audit_of_random_does_not(skewed):
    hardest, random = curate.audit(skewed, "hardest"), curate.audit(skewed, "random")
    assert [group.group_name for group in hardest.groups if group.is_below_floor] == ["rare"]
    assert hardest.groups[0].group_name == "rare"
    assert not any(group.is_below_floor for group in random.groups)
    assert hardest.record.kl > 10 * random.record.kl
    assert hardest.record.effective_groups < random.record.effective_groups - 0.5
    assert abs(hardest.record.random_kl - random.record.kl) < 0.02
    assert hardest.record.distance_99 > 3 * hardest.record.random_distance_99
    assert {group.group_name: group.num_candidates for group in hardest.groups} == CLASSES


def test_without_labels_the_clusters_show_the_same(skewed):
    with skewed.writing() as connection:
        connection.execute("update samples set label = null")
    hardest, random = curate.audit(skewed, "hardest"), curate.audit(skewed, "random")
    assert hardest.record.grouped_by == "cluster"
    assert [group.num_candidates for group in hardest.groups if group.is_below_floor] == [80]
    assert random.record.num_below_floor == 0
