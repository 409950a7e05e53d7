"""Samples that come several times in an epoch: in the catalog, exports, streams and training."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import add_scoring, rows

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.stages.export.manifest import RepeatSummary, read_manifest
from curate.stages.forget.stage import forget
from curate.stages.select.repeats import draw_repeats, expected_repeats
from curate.stages.select.stage import select
from curate.stages.verify import verify
from curate.streaming.byte_ranges import ByteRanges
from curate.streaming.epoch_order import Share, order_epoch

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_REPEATS = "select sample_id, repeats from members where selection = ? order by 1"


@pytest.fixture
def repeated(catalog) -> Catalog:
    """Of 30 samples 18 places: 14.4 are for class 0 and 3.6 for class 1, in whole numbers."""
    ids = [sample_id for (sample_id,) in rows(catalog, "select sample_id from samples order by 1")]
    add_scoring(catalog, "toy", {sample_id: float(order) for order, sample_id in enumerate(ids)})
    select(catalog, keep=0.6, scoring="toy", balance=1, name="plain")
    select(catalog, keep=0.6, scoring="toy", balance=1, repeats=3, name="kept")
    return catalog


def test_the_best_are_expected_most_and_all_places_are_given():
    for count, most in ((1, 5.0), (10, 1.0), (10, 2.5), (1000, 4.0)):
        expected = expected_repeats(count, most)
        assert expected.sum() == pytest.approx(count)
        assert (np.diff(expected) <= 1e-12).all()
        assert expected.max() <= most + 1e-9
    assert expected_repeats(10, 1.0).tolist() == pytest.approx([1.0] * 10)
    assert expected_repeats(100_000, 4.0)[0] == pytest.approx(4.0, abs=1e-3)


def test_drawn_numbers_are_the_expected_ones_rounded_in_each_group():
    generator = np.random.default_rng(0)
    groups, ids = generator.integers(0, 5, 1000), np.arange(1000)
    priorities = generator.standard_normal(1000)
    priorities[:20] = np.nan
    total = np.zeros(1000)
    for seed in range(200):
        repeats = draw_repeats(priorities, groups, ids, 3.0, seed)
        assert np.bincount(groups, repeats).tolist() == np.bincount(groups).tolist()
        total += repeats
    for group in range(5):
        of_group = np.flatnonzero(groups == group)
        # NaN sorts last.
        order = of_group[np.argsort(-priorities[of_group], kind="stable")]
        is_ranked = ~np.isnan(priorities[order])
        expected = expected_repeats(len(order), 3.0)
        assert np.abs(total[order] / 200 - expected)[is_ranked].max() < 0.15
    assert not np.array_equal(repeats, draw_repeats(priorities, groups, ids, 3.0, 0))


def test_members_are_of_the_plain_selection_and_take_as_many_places(repeated, caplog):
    caplog.set_level("INFO")
    plain = {sample_id for sample_id, _ in rows(repeated, _REPEATS, "plain")}
    kept = dict(rows(repeated, _REPEATS, "kept"))
    assert set(kept) < plain
    assert sum(kept.values()) == len(plain) == 18
    assert max(kept.values()) == 3
    per_class = (
        "select label, sum(coalesce(repeats, 1)) from members join samples using (sample_id) "
        "where selection = ? group by 1 order by 1"
    )
    assert rows(repeated, per_class, "kept") == rows(repeated, per_class, "plain")
    assert rows(repeated, "select num_samples, repeats from selections order by selection") == [
        (len(kept), 3.0),
        (18, None),
    ]
    assert verify(repeated) == []
    select(repeated, keep=0.6, scoring="toy", balance=1, repeats=3, name="kept")
    assert "nothing to do" in caplog.text
    assert select(repeated, keep=0.6, scoring="toy", repeats=2.5).endswith("-repeats2.5")
    assert f"{len(kept)} of 30 samples, 18 with repeats" not in caplog.text
    select(repeated, keep=0.6, scoring="toy", balance=1, repeats=3, name="again")
    assert f"'again': {len(kept)} of 30 samples, 18 with repeats (up to 3 of one)" in caplog.text


def test_weights_of_repeated_samples_have_a_mean_of_one_over_their_places(repeated):
    select(repeated, keep=0.6, scoring="toy", balance=0.1, repeats=3, weights=True, name="weighted")
    ((mean, total),) = rows(
        repeated,
        "select sum(weight * repeats) / sum(repeats), sum(repeats) from members "
        "where selection = 'weighted'",
    )
    assert (mean, total) == (pytest.approx(1), 18)


def test_repeats_need_a_ranking(repeated):
    with pytest.raises(OptionError, match="--repeats: 'coverage' makes no ranking"):
        select(repeated, keep=0.5, strategy="coverage", scoring="toy", repeats=2)
    with pytest.raises(OptionError, match="leave out --repeats"):
        select(repeated, keep="auto", repeats=2)
    with pytest.raises(OptionError, match="repeats"):
        select(repeated, keep=0.5, scoring="toy", repeats=1)
    with pytest.raises(OptionError, match="--repeats says what is selected for --keep"):
        curate.validate(repeated, ["kept"], repeats=2)


@pytest.mark.parametrize("layout", [{}, {"samples_per_shard": 7}, {"index_only": True}])
def test_an_export_has_each_sample_once_and_its_number_beside(repeated, tmp_path, layout):
    curate.export(repeated, "kept", tmp_path / "out", **layout)
    index = pq.read_table(tmp_path / "out/.curate/index.parquet").to_pydict()
    expected = dict(rows(repeated, _REPEATS, "kept"))
    assert dict(zip(index["sample_id"], index["repeats"], strict=True)) == expected
    assert read_manifest(str(tmp_path / "out")).repeats == RepeatSummary(18, 3)
    assert verify(repeated, [tmp_path / "out"]) == []
    curate.export(repeated, "plain", tmp_path / "plain", **layout)
    assert json.loads((tmp_path / "plain/.curate/manifest.json").read_text())["repeats"] is None


def test_a_stream_gives_each_sample_as_often_as_it_comes(repeated, tmp_path):
    curate.export(repeated, "kept", tmp_path / "kept.parquet", format="index")
    sql = (
        "select url, key, repeats from members join samples using (sample_id) "
        "join shards using (shard_id) where selection = 'kept' order by all"
    )
    expected = rows(repeated, sql)
    for source in ((repeated, "kept"), (tmp_path / "kept.parquet",)):
        stream = curate.stream(*source, shuffle=4, seed=1)
        assert len(stream) == 18
        for _ in range(2):
            names = [(sample["__url__"], sample["__key__"]) for sample in stream]
            assert sorted({(*name, names.count(name)) for name in names}) == expected
    stream = curate.stream(repeated, "kept", shuffle=4, seed=1)
    state, all_keys = None, []
    for position, sample in enumerate(stream):
        all_keys.append(sample["__key__"])
        if position == 6:
            state = stream.state_dict()
    resumed = curate.stream(repeated, "kept", shuffle=4, seed=1)
    resumed.load_state_dict(state)
    assert [sample["__key__"] for sample in resumed] == all_keys[7:]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("shuffle", [0, 50, 10_000])
def test_no_sample_is_twice_in_a_buffer_and_each_reader_has_all_of_it(world_size, workers, shuffle):
    generator = np.random.default_rng(shuffle)
    num_rows = 2000
    repeats = generator.choice([1, 1, 1, 2, 3, 5], num_rows)
    starts = np.unique(np.concatenate([[0], generator.integers(0, num_rows, 300)]))
    ranges = ByteRanges(starts, np.append(starts[1:], num_rows))
    counts = np.zeros((world_size * workers, num_rows), int)
    lengths = np.zeros(world_size, int)
    for reader in range(world_size * workers):
        rank, worker = divmod(reader, workers)
        share = Share(rank, world_size, worker, workers)
        order = order_epoch(
            ranges, share, seed=3, epoch=1, shuffle=shuffle, drop_last=False, repeats=repeats
        )
        output = order.rows[order.output]
        np.add.at(counts[reader], output, 1)
        lengths[rank] += len(output)
        by_row = np.argsort(output, kind="stable")
        distances = np.diff(by_row)[np.diff(output[by_row]) == 0]
        longest_delay = np.abs(order.output - np.arange(len(output))).max()
        assert distances.min() > longest_delay
        assert distances.min() > min(shuffle, len(output) // (3 * 5 + 3))
    assert len(set(lengths.tolist())) == 1
    surplus = counts.sum(axis=0) - repeats
    assert surplus.min() == 0
    assert surplus.sum() == lengths.sum() - repeats.sum() < world_size
    # All of a sample but those on borders are with one reader.
    assert ((counts > 0).sum(axis=0) > 1).sum() <= 2 * len(counts)


def test_a_training_loop_gets_the_numbers(repeated):
    urls = [url for (url,) in rows(repeated, "select url from shards order by shard_id")]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).select(
        curate.kept(repeated, "kept", repeats=True)
    )
    found = {(sample["__url__"], sample["__key__"], sample["__repeats__"]) for sample in dataset}
    sql = (
        "select url, key, repeats from members join samples using (sample_id) "
        "join shards using (shard_id) where selection = 'kept'"
    )
    assert found == set(rows(repeated, sql))
    with pytest.raises(CurateError, match="has no repeats"):
        curate.kept(repeated, "plain", repeats=True)


def test_forgetting_takes_places_with_the_sample(repeated, tmp_path):
    curate.export(repeated, "kept", tmp_path / "out")
    curate.export(repeated, "kept", tmp_path / "kept.parquet", format="index")
    ((key, number),) = rows(
        repeated,
        "select key, sum(repeats)::bigint from members join samples using (sample_id) "
        "where selection = 'kept' group by key order by max(repeats) desc, key limit 1",
    )
    forget(repeated, key, receipt=tmp_path / "receipt.json")
    assert verify(repeated, [tmp_path / "out"]) == []
    assert read_manifest(str(tmp_path / "out")).repeats.num_presentations == 18 - number
    assert len(curate.stream(tmp_path / "kept.parquet")) == 18 - number
