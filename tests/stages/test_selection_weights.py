"""A weight for each kept sample: in the catalog, the export, and training pipelines."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import add_scoring, rows

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.stages.export.manifest import WeightSummary, read_manifest
from curate.stages.select.stage import select
from curate.stages.select.weights import inverse_keep_weights
from curate.strategies import Quotas, strategies

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def weighted(catalog) -> Catalog:
    """Of 24 samples of class 0, 12 are kept; of the 6 of class 1, all 6."""
    ids = [sample_id for (sample_id,) in rows(catalog, "select sample_id from samples order by 1")]
    rare = {
        sample_id for (sample_id,) in rows(catalog, "select sample_id from samples where label = 1")
    }
    scores = {key: (100.0 if key in rare else 0.0) + order for order, key in enumerate(ids)}
    add_scoring(catalog, "toy", scores)
    select(catalog, keep=0.6, scoring="toy", balance=0, weights=True, name="kept")
    return catalog


# size / kept: 24 / 12 and 6 / 6; the mean over what is kept is 30 / 18.
WEIGHTS = {"0": pytest.approx(2 * 18 / 30), "1": pytest.approx(18 / 30)}


def test_weights_are_inverse_shares_with_a_mean_of_one():
    strata = np.array([0] * 8 + [1] * 4 + [2] * 3)
    is_kept = np.array([1] * 2 + [0] * 6 + [1] * 4 + [0] * 3, bool)
    weights = inverse_keep_weights(strata, is_kept)
    assert weights.tolist() == pytest.approx([2, 2, 0.5, 0.5, 0.5, 0.5])
    assert weights.mean() == pytest.approx(1)


def test_each_member_has_the_weight_of_its_class(weighted):
    found = rows(
        weighted,
        "select label, min(weight), max(weight), count(*) from members join samples "
        "using (sample_id) where selection = 'kept' group by 1 order by 1",
    )
    assert found == [("0", WEIGHTS["0"], WEIGHTS["0"], 12), ("1", WEIGHTS["1"], WEIGHTS["1"], 6)]
    assert rows(weighted, "select weights_by from selections") == [("label",)]
    assert rows(weighted, "select avg(weight) from members") == [(pytest.approx(1),)]


def test_weights_change_no_member_but_the_name_and_what_is_out_of_date(weighted, caplog):
    caplog.set_level("INFO")
    select(weighted, keep=0.6, scoring="toy", balance=0, weights=True, name="kept")
    assert "nothing to do" in caplog.text
    plain = select(weighted, keep=0.6, scoring="toy", balance=0)
    named = select(weighted, keep=0.6, scoring="toy", balance=0, weights=True)
    assert named == f"{plain}-weights"
    sql = "select sample_id from members where selection = ? order by 1"
    assert rows(weighted, sql, plain) == rows(weighted, sql, named)
    assert rows(weighted, "select count(weight) from members where selection = ?", plain) == [(0,)]


def test_strata_are_those_that_the_strategy_gives_quotas(weighted):
    """A third of the lower half is kept, and two thirds of the upper one."""

    def thirds(scores: np.ndarray, num_kept: int) -> Quotas:
        groups = (scores > np.median(scores)).astype(np.int64)
        return Quotas(np.array([num_kept // 3, num_kept - num_kept // 3]), groups, scores)

    strategies["thirds"] = thirds
    try:
        select(weighted, keep=0.5, scoring="toy", strategy="thirds", weights=True, name="own")
    finally:
        del strategies["thirds"]
    found = rows(
        weighted,
        "select score > (select median(score) from scores), weight, count(*) from members "
        "join scores using (sample_id) where selection = 'own' group by all order by 1",
    )
    assert found == [(False, pytest.approx(1.5), 5), (True, pytest.approx(0.75), 10)]
    assert rows(weighted, "select weights_by from selections where selection = 'own'") == [
        ("strategy",)
    ]


def test_weights_need_groups(weighted):
    with pytest.raises(CurateError, match="--weights: there are no groups to weight by"):
        select(weighted, keep=0.5, strategy="random", balance_by="none", weights=True)
    with pytest.raises(OptionError, match="leave out --weights"):
        select(weighted, keep="auto", weights=True)


@pytest.mark.parametrize("layout", [{}, {"samples_per_shard": 7}, {"index_only": True}])
def test_an_export_has_the_weights_in_index_and_manifest(weighted, tmp_path, layout):
    curate.export(weighted, "kept", tmp_path / "out", **layout)
    index = pq.read_table(tmp_path / "out/.curate/index.parquet").to_pydict()
    expected = dict(rows(weighted, "select sample_id, weight from members"))
    assert dict(zip(index["sample_id"], index["weight"], strict=True)) == expected
    summary = read_manifest(str(tmp_path / "out")).weights
    assert summary == WeightSummary("label", WEIGHTS["1"], WEIGHTS["0"])
    assert curate.verify(weighted, [tmp_path / "out"]) == []


def test_what_was_dropped_has_no_weights_and_neither_has_a_plain_selection(weighted, tmp_path):
    curate.export(weighted, "kept", tmp_path / "rest", complement=True)
    select(weighted, keep=0.5, strategy="random", name="plain")
    curate.export(weighted, "plain", tmp_path / "plain")
    for folder in ("rest", "plain"):
        index = pq.read_table(tmp_path / folder / ".curate/index.parquet")
        assert "weight" not in index.column_names
        manifest = json.loads((tmp_path / folder / ".curate/manifest.json").read_text())
        assert manifest["weights"] is None


def test_a_training_loop_gets_the_weights(weighted):
    urls = [url for (url,) in rows(weighted, "select url from shards order by shard_id")]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).select(
        curate.kept(weighted, "kept", weights=True)
    )
    pairs = list(dataset.decode("pil").to_tuple("cls", "__weight__"))
    assert len(pairs) == 18
    assert all(weight == WEIGHTS[str(label)] for label, weight in pairs)
    select(weighted, keep=0.5, strategy="random", name="plain")
    with pytest.raises(CurateError, match="'plain' has no weights.*curate select --weights"):
        curate.kept(weighted, "plain", weights=True)
