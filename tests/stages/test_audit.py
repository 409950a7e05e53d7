"""What a selection leaves of groups, against random; and how alike selections are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scoring, load_scores, members, png, rows, write_shard
from scipy.stats import spearmanr

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.formats.vectors import write_vectors
from curate.stages.audit.measures import effective_number, kl_divergence, measure_coverage
from curate.stages.audit.stage import Audit, StarvedGroupsError
from curate.stages.embed.stage import embed
from curate.stages.sample_groups import Grouping, are_starved
from curate.stages.select.stage import select
from curate.stages.staleness import find_stale

CLASSES = {"common": 400, "usual": 360, "rare": 240}


@pytest.fixture(scope="module")
def skewed_once(tmp_path_factory) -> Path:
    """1,000 samples of three classes, whose images are near three colours.

    Samples of the rare class score lowest, with few exceptions; `shade` is a column of numbers.
    """
    folder = tmp_path_factory.mktemp("skewed")
    labels = np.repeat(list(CLASSES), list(CLASSES.values()))
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    samples = []
    for position, label in enumerate(labels[order]):
        fields = {
            "shade": float(generator.uniform()),
            "site": "north" if position < 700 else "south",
        }
        samples.append((f"{position:04d}", {"png": png(0, (2, 2)), "cls": label.encode()}))
        samples[-1][1]["json"] = json.dumps(fields).encode()
    catalog = Catalog(folder / "catalog")
    shard = str(write_shard(folder / "a.tar", samples))
    embed(catalog, [shard], encoder="pixels@2", columns="all", workers=1)
    centre = {label: np.eye(12)[index] for index, label in enumerate(CLASSES)}
    vectors = np.stack([centre[label] for label in labels[order]])
    vectors += 0.05 * generator.standard_normal(vectors.shape)
    (file,) = catalog.vector_files("pixels@2")
    write_vectors(file, np.arange(len(vectors)), vectors.astype(np.float32))
    level = {"common": 1.0, "usual": 0.9, "rare": 0.0}
    scores = {
        index: level[label] + float(generator.uniform())
        for index, label in enumerate(labels[order])
    }
    add_scoring(catalog, "toy", scores)
    add_scoring(
        catalog, "tilted", {key: score + 2 * (key % 20 == 0) for key, score in scores.items()}
    )
    curate.cluster(catalog, k=3, seed=1)
    for strategy in ("hardest", "random"):
        select(catalog, keep=0.1, scoring="toy", strategy=strategy, balance=0, name=strategy)
    return catalog.path


@pytest.fixture
def skewed(skewed_once, tmp_path) -> Catalog:
    """A copy for each test."""
    shutil.copytree(skewed_once, tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def below_floor(audit: Audit) -> list[str]:
    return [group.group_name for group in audit.groups if group.is_below_floor]


def test_the_audit_of_the_hardest_tenth_flags_what_that_of_a_random_tenth_does_not(skewed):
    hardest, random = curate.audit(skewed, "hardest"), curate.audit(skewed, "random")
    assert below_floor(hardest) == ["rare"]
    assert (hardest.groups[0].group_name, hardest.groups[0].num_kept) == ("rare", 0)
    assert below_floor(random) == []
    assert {group.group_name: group.num_candidates for group in hardest.groups} == CLASSES
    found, baseline = hardest.record, random.record
    assert (found.num_vanished, found.random_num_vanished, baseline.num_vanished) == (1, 0, 0)
    assert found.kl > 10 * baseline.kl
    assert found.effective_groups < baseline.effective_groups - 0.5
    assert found.distance_99 > 3 * found.random_distance_99
    assert found.distance_mean > 3 * baseline.distance_mean
    assert [picture.name for picture in hardest.pictures] == ["audit-hardest-by_label.png"]


def test_without_labels_the_clusters_show_the_same(skewed):
    with skewed.writing() as connection:
        connection.execute("update samples set label = null")
    hardest, random = curate.audit(skewed, "hardest"), curate.audit(skewed, "random")
    assert hardest.record.grouped_by == "cluster"
    assert [group.num_candidates for group in hardest.groups if group.is_below_floor] == [240]
    assert below_floor(random) == []


def test_an_audit_is_a_set_that_is_made_once_and_goes_out_of_date_with_its_selection(
    skewed, caplog
):
    caplog.set_level("INFO")
    first = curate.audit(skewed, "hardest", seeds=2)
    caplog.clear()
    again = curate.audit(skewed, "hardest", seeds=2)
    assert "nothing to do" in caplog.text
    assert again == first
    assert rows(skewed, "select count(*) from runs where stage = 'audit'") == [(1,)]
    select(skewed, keep=0.2, scoring="toy", balance=0, name="hardest")
    assert "before the last change of 'hardest'" in find_stale(skewed)["audit", str(first)]


def test_fail_below_keeps_the_audit_and_says_which_group(skewed):
    with pytest.raises(
        StarvedGroupsError, match="1 group of 'hardest' keeps less.*'rare'"
    ) as error:
        curate.audit(skewed, "hardest", fail_below=0.4, seeds=1)
    assert below_floor(error.value.audit) == ["rare"]
    assert rows(skewed, "select audit from audits") == [("hardest-by_label",)]
    curate.audit(skewed, "random", fail_below=0.4, seeds=1)


def test_a_recipe_ends_where_an_audit_fails(skewed, tmp_path):
    recipe = tmp_path / "guarded.toml"
    step = '[[audit]]\nselection = "{}"\nfail_below = 0.4\nseeds = 1\n'
    comparison = '[compare]\nselections = ["random", "hardest"]\n'
    recipe.write_text(step.format("random") + step.format("hardest") + comparison)
    with pytest.raises(StarvedGroupsError, match="'rare'"):
        curate.run(recipe, skewed.path)
    assert rows(skewed, "select selection from audits order by run_id") == [
        ("random",),
        ("hardest",),
    ]
    assert not list(skewed.path.glob("figures/compare-*"))


def test_groups_are_the_values_of_a_column_and_ranges_of_numbers(skewed):
    by_site = curate.audit(skewed, "random", by="site", seeds=1)
    assert {group.group_name: group.num_candidates for group in by_site.groups} == {
        "north": 700,
        "south": 300,
    }
    by_shade = curate.audit(skewed, "random", by="shade", seeds=1)
    assert [group.num_candidates for group in by_shade.groups] == [100] * 10
    assert sum(group.num_kept for group in by_shade.groups) == 100
    assert str(by_shade) == "random-by_shade"
    assert Grouping("size / px", "size / px").name == "size___px"


def test_a_column_that_does_not_exist_or_makes_no_groups_is_refused(skewed):
    with pytest.raises(OptionError, match="--by nothing: no such column; there are: label"):
        curate.audit(skewed, "hardest", by="nothing")
    with pytest.raises(OptionError, match="--by key: 1,000 values of 1,000 samples are no groups"):
        curate.audit(skewed, "hardest", by="key")
    with pytest.raises(OptionError, match="--clustering goes with --by cluster"):
        curate.audit(skewed, "hardest", by="label", clustering="kmeans")
    with pytest.raises(CurateError, match="no selection called 'softest'"):
        curate.audit(skewed, "softest")
    assert rows(skewed, "select count(*) from audits") == [(0,)]


def test_a_selection_of_everything_has_nothing_to_cover(skewed):
    select(skewed, keep=1.0, strategy="random", name="whole")
    record = curate.audit(skewed, "whole", seeds=1).record
    assert (record.distance_mean, record.random_distance_99, record.kl) == (None, None, 0)
    assert record.near_duplicate_share == record.random_near_duplicate_share


def test_the_report_shows_the_audit(skewed):
    curate.audit(skewed, "hardest", seeds=1)
    page = Path(curate.report(skewed, thumbnails=0)).read_text()
    assert 'id="audits"' in page
    assert "below the floor" in page


def test_select_warns_of_a_class_that_is_nearly_lost_and_not_at_random(skewed, caplog):
    select(skewed, keep=0.55, scoring="tilted", balance=0, name="half")
    (message,) = [text for text in caplog.messages if "lose more than 90%" in text]
    assert (
        "1 of 3 classes lose more than 90% in 'half', which keeps 0.55 of all: 'rare' (" in message
    )
    caplog.clear()
    select(skewed, keep=0.1, strategy="random", balance=0, name="tenth")
    assert not caplog.messages
    # Whatever the balance is by, classes count where there are labels.
    select(skewed, keep=0.1, scoring="toy", balance=0, balance_by="none", name="unbalanced")
    assert "'rare' (0 of 240)" in caplog.text


def test_select_warns_of_a_cluster_of_an_unlabelled_corpus(skewed, caplog):
    with skewed.writing() as connection:
        connection.execute("update samples set label = null")
    select(skewed, keep=0.55, scoring="tilted", balance=0, name="half")
    assert "1 of 3 clusters lose more than 90%" in caplog.text


def test_kl_divergence_and_effective_number_by_hand():
    counts, all_counts = np.array([3, 1, 0]), np.array([50, 25, 25])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.25)
    assert kl_divergence(counts, all_counts) == pytest.approx(expected)
    assert kl_divergence(np.array([2, 1, 1]), all_counts) == 0
    assert effective_number(np.array([5, 5, 5, 0])) == pytest.approx(3)
    assert effective_number(np.array([1, 3])) == pytest.approx(4 / 3**0.75)


def test_a_group_is_starved_beyond_chance_only():
    expected = np.array([5, 16, 16, 100, 100])
    kept = np.array([0, 0, 5, 49, 51])
    assert are_starved(kept, expected, 0.5).tolist() == [False, True, False, True, False]


def test_coverage_equals_that_by_all_pairs(tmp_path):
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 8)).astype(np.float16)
    vectors[7] = vectors[3]  # kept both
    files = [str(tmp_path / name) for name in ("0.parquet", "1.parquet")]
    write_vectors(files[0], np.arange(100), vectors[:100])
    write_vectors(files[1], np.arange(100, 300), vectors[100:])
    is_kept = np.arange(290) < 40
    coverage = measure_coverage(
        files, np.arange(290), [is_kept, ~is_kept], 0.3, 0, lambda work, samples: None
    )
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit[40:290] @ unit[:40].T
    to_kept, to_others = 1 - cosines.max(axis=1), 1 - cosines.max(axis=0)
    expected = [to_kept.mean(), to_others.mean()]
    np.testing.assert_allclose(coverage.distance_mean, expected, atol=1e-6)
    expected = [np.quantile(to_kept, 0.99), np.quantile(to_others, 0.99)]
    np.testing.assert_allclose(coverage.distance_99, expected, atol=1e-6)
    assert coverage.near_duplicate_share[0] == 2 / 40


# -- compare


def test_two_selections_share_what_both_keep_and_each_class_is_counted(skewed):
    comparison = curate.compare(skewed, ["hardest", "random"])
    (pair,) = comparison.pairs
    hardest, random = (set(members(skewed, name)) for name in ("hardest", "random"))
    assert pair.num_shared == len(hardest & random)
    assert pair.jaccard == pytest.approx(len(hardest & random) / len(hardest | random))
    assert pair.random_jaccard == pytest.approx(10 / 190)
    assert pair.spearman is None  # the random one has no scoring
    labels = dict(rows(skewed, "select sample_id, label from samples"))
    for group in comparison.groups:
        of_class = {key for key, label in labels.items() if label == group.group_name}
        assert group.num_both == len(hardest & random & of_class)
        assert group.num_only_a == len((hardest - random) & of_class)
        assert group.num_only_b == len((random - hardest) & of_class)
        assert group.num_neither == len(of_class - hardest - random)
    assert comparison.picture.is_file()


def test_scorings_are_compared_by_their_ranks(skewed):
    for scoring in ("toy", "tilted"):
        for strategy in ("hardest", "easiest"):
            select(
                skewed, keep=0.5, scoring=scoring, strategy=strategy, name=f"{scoring}-{strategy}"
            )
    comparison = curate.compare(skewed, ["toy-hardest", "toy-easiest", "tilted-hardest"])
    by_pair = {(pair.a, pair.b): pair for pair in comparison.pairs}
    assert by_pair["toy-hardest", "toy-easiest"].spearman == 1
    assert by_pair["toy-hardest", "toy-easiest"].num_shared < 250
    scores = [load_scores(skewed, scoring) for scoring in ("toy", "tilted")]
    expected = spearmanr(*scores).statistic
    assert by_pair["toy-hardest", "tilted-hardest"].spearman == pytest.approx(expected)


def test_one_selection_cannot_be_compared(skewed):
    with pytest.raises(OptionError, match="two selections or more"):
        curate.compare(skewed, ["hardest", "hardest"])
    with pytest.raises(OptionError, match="ends in .png"):
        curate.compare(skewed, ["hardest", "random"], out="overlap.pdf")
