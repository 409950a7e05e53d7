"""Labels that say nothing, or the same in several spellings: no verdict stands on them."""

import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import png, rows, write_shard

from curate.catalog.catalog import Catalog
from curate.catalog.samples import find_alike_labels, make_label_bins
from curate.errors import CurateError, OptionError
from curate.stages.embed.stage import embed, num_failures
from curate.stages.probe.stage import probe
from curate.stages.report.stage import report
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.validate.stage import validate


def embed_world(worlds, name: str, folder, **options) -> Catalog:
    getattr(worlds, name)(folder / "corpus")
    catalog = Catalog(folder / "catalog")
    embed(catalog, str(folder / "corpus"), encoder="pixels", workers=1, **options)
    return catalog


def test_labels_that_are_measurements_are_no_evidence(worlds, tmp_path):
    catalog = embed_world(worlds, "labels_that_are_measurements", tmp_path)
    score(catalog, ["random"])
    selection = select(catalog, scoring="random", keep=0.5)
    for run in (
        lambda: validate(catalog, [selection], seeds=2),
        lambda: probe(catalog),
        lambda: score(catalog, ["supervised_prototypes"]),
    ):
        with pytest.raises(CurateError, match="120 different labels for 120 samples") as caught:
            run()
        assert "--label-bins 5" in str(caught.value)
    assert rows(catalog, "select count(*) from training_runs") == [(0,)]
    # The remedies hold: bins are classes, and coverage needs none.
    for options in ({"label_bins": 3}, {"task": "coverage"}):
        name = validate(catalog, [selection], seeds=2, epochs=1, **options)
        assert rows(catalog, "select count(*) from comparisons where validation = ?", name) == [
            (2,)
        ]
    sql = "select distinct label from class_accuracies order by 1"
    assert len(rows(catalog, sql)) == 3


def test_bins_hold_about_as_many_samples_each(worlds, tmp_path):
    catalog = embed_world(worlds, "labels_that_are_measurements", tmp_path)
    bins = make_label_bins(catalog, 4)
    labels = [label for (label,) in rows(catalog, "select label from samples")]
    counts = np.bincount(bins.encode(np.array(labels)))
    assert counts.sum() == 120
    assert np.abs(counts - 30).max() <= 1
    assert bins.encode(np.array(["-99", "99", "cat"])).tolist() == [0, 3, -1]
    assert len(bins.names) == 4


def test_bins_are_for_numbers(catalog):
    with pytest.raises(OptionError, match="leave out --label-bins"):
        validate(catalog, ["x"], task="coverage", label_bins=3)
    with catalog.writing() as connection:
        connection.execute("update samples set label = 'cat' where sample_id = 1")
    with pytest.raises(CurateError, match="'cat' is a label"):
        make_label_bins(catalog, 3)


def test_samples_without_a_label_are_counted_and_no_arm_is_compared_with_itself(
    worlds, tmp_path, caplog
):
    catalog = embed_world(worlds, "labels_in_half_of_the_corpus", tmp_path)
    score(catalog, ["supervised_prototypes"])
    half = select(catalog, scoring="supervised_prototypes", keep=0.5)
    ((num_unlabelled,),) = rows(
        catalog, "select count(*) from members join samples using (sample_id) where label is null"
    )
    assert num_unlabelled == 0  # they have no score
    with pytest.raises(CurateError, match="nothing to compare.*--where 'label is not null'"):
        validate(catalog, [half], seeds=2, epochs=1)
    assert "120 of 240 samples have no label and are left out" in caplog.text
    assert rows(catalog, "select count(*) from comparisons") == [(0,)]
    smaller = select(catalog, scoring="supervised_prototypes", keep=0.5, where="label is not null")
    validate(catalog, [half, smaller], seeds=2, epochs=1)
    assert set(rows(catalog, "select selection from comparisons")) == {(smaller,)}


def test_random_samples_that_are_all_candidates_are_no_rival(catalog):
    """The selection is all of its candidates, and so would every draw be."""
    score(catalog, ["random"])
    selection = select(catalog, scoring="random", keep=1.0, where="sample_id % 3 > 0")
    validate(catalog, [selection], seeds=2, epochs=1)
    assert rows(catalog, "select distinct baseline from comparisons") == [("full",)]


@pytest.mark.parametrize(
    ("world", "options", "counts"),
    [
        ("labels_with_bom", {}, [("0", 60), ("1", 60)]),
        ("labels_with_zeros", {}, [("0", 60), ("1", 60)]),
        ("labels_of_changing_type", {"label": "json:y"}, [("0", 80), ("1", 80)]),
    ],
)
def test_two_classes_are_two(worlds, tmp_path, world, options, counts):
    catalog = embed_world(worlds, world, tmp_path, **options)
    sql = "select label, count(*) from samples group by label order by label"
    assert rows(catalog, sql) == counts
    assert num_failures(catalog) == 0


def test_classes_that_look_alike_are_reported(worlds, tmp_path, caplog):
    labels = [b"cat", b"Cat", b"1", b"1.0", b"dog"]
    samples = [(f"{i:03d}", {"png": png(i), "cls": label}) for i, label in enumerate(labels)]
    shard = write_shard(tmp_path / "0.tar", samples)
    catalog = Catalog(tmp_path / "catalog")
    with caplog.at_level(logging.WARNING, "curate"):
        embed(catalog, str(shard), encoder="pixels", workers=1)
    assert find_alike_labels(catalog) == [["1", "1.0"], ["Cat", "cat"]]
    assert "classes that look alike: '1' and '1.0'; 'Cat' and 'cat' (2 in all)" in caplog.text


def test_odd_captions_are_read(worlds, tmp_path):
    catalog = embed_world(worlds, "captions_odd", tmp_path)
    assert Path(report(catalog)).stat().st_size < 1_000_000  # the long caption has 5 MB
    captions = dict(rows(catalog, "select key, caption from samples"))
    assert captions.pop("long").startswith("word word")
    assert captions == {
        "utf16": "a small cat",
        "utf16le": "a small cat",
        "bom": "a cat",
        "sound": "a cat",
    }
