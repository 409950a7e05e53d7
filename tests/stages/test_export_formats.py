"""Exports for other programs: lists, the complement, unique keys, and what clients want beside."""

import csv
import itertools
import json
import sqlite3
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_catalog, members, png, rows, write_shard

from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.stages.embed.stage import embed
from curate.stages.export.clients import CLIENTS
from curate.stages.export.stage import export
from curate.stages.select.stage import select
from curate.stages.verify import verify


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Catalog:
    """Half of the samples of the first and third of three shards are selected."""
    catalog = make_catalog(tmp_path_factory.mktemp("world"))
    where = "url not like '%001.tar'"
    select(catalog, keep=0.5, strategy="random", name="half", where=where)
    return catalog


def selected_keys(catalog: Catalog) -> list[str]:
    sql = "select key from members join samples using (sample_id) order by sample_id"
    return [key for (key,) in rows(catalog, sql)]


def list_names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_keys_as_text_and_as_parquet(world, tmp_path):
    text, table = tmp_path / "keys.txt", tmp_path / "keys.parquet"
    for out in (text, table):
        assert export(world, "half", out, format="keys") == str(out)
    assert text.read_text().splitlines() == selected_keys(world)
    written = pq.read_table(table).to_pydict()
    assert written["key"] == selected_keys(world)
    assert written["sample_id"] == members(world, "half")
    assert {Path(url).name for url in written["url"]} == {"000.tar", "002.tar"}


def test_a_manifest_has_the_paths_that_tar_unpacks(world, tmp_path):
    export(world, "half", tmp_path / "kept.csv", format="csv")
    with (tmp_path / "kept.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["key"] for line in lines] == selected_keys(world)
    assert {line["label"] for line in lines} == {"0", "1"}
    for line in lines:
        assert line["path"] in list_names(Path(line["url"]))


def test_the_complement_is_every_other_sample_once(world, tmp_path):
    export(world, "half", tmp_path / "kept.parquet", format="keys")
    export(world, "half", tmp_path / "rest.parquet", format="keys", complement=True)
    kept, rest = (
        pq.read_table(tmp_path / name)["sample_id"].to_pylist()
        for name in ("kept.parquet", "rest.parquet")
    )
    everything = [sample_id for (sample_id,) in rows(world, "select sample_id from samples")]
    assert sorted(kept + rest) == sorted(everything)
    out = Path(export(world, "half", tmp_path / "rest", complement=True))
    index = pq.read_table(out / ".curate" / "index.parquet")
    assert index["sample_id"].to_pylist() == rest
    assert verify(world, [out], check_sources=True) == []


def test_a_shard_that_came_later_was_not_dropped(tmp_path):
    catalog = make_catalog(tmp_path)
    select(catalog, keep=0.5, strategy="random", name="half")
    new = write_shard(tmp_path / "corpus" / "new.tar", [("new", {"png": png(5)})])
    embed(catalog, str(new), encoder="pixels", workers=1)
    export(catalog, "half", tmp_path / "rest.txt", format="keys", complement=True)
    assert "new" not in (tmp_path / "rest.txt").read_text()
    out = Path(export(catalog, "half", tmp_path / "rest", complement=True))
    assert not (out / "new.tar").exists()


def test_nothing_is_the_complement_of_everything(world, tmp_path):
    select(world, keep=1.0, strategy="random", name="all")
    with pytest.raises(CurateError, match="'all' has every sample: nothing was dropped"):
        export(world, "all", tmp_path / "out", complement=True)


def uids(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [generator.bytes(16).hex() for _ in range(count)]


def test_uids_for_datacomp_are_sorted_pairs_of_64_bits(tmp_path):
    keys = uids(20)
    write_shard(tmp_path / "in" / "0.tar", [(key, {"png": png(i)}) for i, key in enumerate(keys)])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "in"), encoder="pixels", workers=1)
    select(catalog, keep=1.0, strategy="random", name="all")
    export(catalog, "all", tmp_path / "subset.npy", format="datacomp")
    subset = np.load(tmp_path / "subset.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    # As DataComp's own reader does: the high half of the 128 bits first.
    expected = sorted((int(key[:16], 16), int(key[16:], 16)) for key in keys)
    assert subset.tolist() == expected


def test_what_is_no_uid_is_counted(world, tmp_path):
    with pytest.raises(CurateError, match="10 samples of 10 have no uid in 'key', such as '000"):
        export(world, "half", tmp_path / "x.npy", format="datacomp")
    with pytest.raises(CurateError, match="--uid nope: sample_scores has no such column"):
        export(world, "half", tmp_path / "x.npy", format="datacomp", uid="nope")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "options", "reason"),
    [
        ("folder", {"format": "keys"}, r"name it \*.txt or \*.parquet"),
        ("a.txt", {"format": "keys", "clients": ["wids"]}, "leave out --for"),
        ("a.csv", {"format": "csv", "unique_keys": True}, "writes no shards"),
        ("out", {"uid": "key"}, "--uid goes with --format datacomp"),
        ("out.tar", {}, "shards go into a folder, so name it without an ending"),
        ("out.parquet", {}, "for a list give --format keys or index"),
        ("out", {"clients": "wids", "index_only": True}, "--for takes no --index-only"),
        ("out", {"clients": ["keras"]}, "--for keras: choose one of open_clip"),
    ],
)
def test_options_that_contradict_each_other(world, tmp_path, out, options, reason):
    with pytest.raises(OptionError, match=reason):
        export(world, "half", tmp_path / out, **options)


def exported_keys(out: Path) -> list[str]:
    names = itertools.chain.from_iterable(list_names(path) for path in sorted(out.glob("*.tar")))
    return [name.removesuffix(".png") for name in names if name.endswith(".png")]


@pytest.mark.parametrize("samples_per_shard", [None, 4])
def test_no_key_comes_twice_in_the_whole_export(world, tmp_path, samples_per_shard):
    out = Path(
        export(
            world,
            "half",
            tmp_path / "out",
            unique_keys=True,
            samples_per_shard=samples_per_shard,
        )
    )
    keys = exported_keys(out)
    assert len(keys) == len(set(keys)) == 10
    assert all(key.startswith(("0-", "2-")) for key in keys)
    assert verify(world, [out], check_sources=True) == []


def test_keys_that_are_unique_stay_and_those_twice_in_a_shard_have_the_samples_id(tmp_path):
    def exported(name: str, keys: list[str]) -> list[str]:
        samples = [(key, {"png": png(i)}) for i, key in enumerate(keys)]
        write_shard(tmp_path / name / "in" / "0.tar", samples)
        catalog = Catalog(tmp_path / name / "catalog")
        embed(catalog, str(tmp_path / name / "in"), encoder="pixels", workers=1)
        select(catalog, keep=1.0, strategy="random", name="all")
        return exported_keys(
            Path(export(catalog, "all", tmp_path / name / "out", unique_keys=True))
        )

    assert exported("unique", ["a", "b"]) == ["a", "b"]
    assert exported("twice", ["a", "b", "a"]) == ["0-a", "1-b", "2-a"]


@pytest.fixture(scope="module")
def for_clients(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clients") / "out"
    return Path(export(world, "half", out, clients=list(CLIENTS)))


def count_samples(path: Path) -> int:
    return sum(name.endswith(".png") for name in list_names(path))


def test_open_clip_finds_the_sizes_of_the_shards(for_clients):
    sizes = json.loads((for_clients / "sizes.json").read_text())
    assert sizes == {path.name: count_samples(path) for path in for_clients.glob("*.tar")}
    assert sizes["001.tar"] == 0


def test_wids_finds_the_shards_that_have_samples(for_clients):
    index = json.loads((for_clients / "wids.json").read_text())
    assert index["wids_version"] == 1
    for shard in index["shardlist"]:
        path = for_clients / shard["url"]
        assert (shard["nsamples"], shard["filesize"]) == (
            count_samples(path),
            path.stat().st_size,
        )
    assert [shard["url"] for shard in index["shardlist"]] == ["000.tar", "002.tar"]


def test_dali_finds_every_member(for_clients):
    for path in for_clients.glob("*.tar"):
        head, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert head == f"v1.2 {count_samples(path)}"
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            for line in lines:
                words = line.split(" ")
                for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
                    assert name.endswith(f".{extension}")
                    content = tar.extractfile(name).read()
                    assert data[int(offset) : int(offset) + int(size)] == content


def test_energon_finds_samples_with_classes_and_unique_keys(for_clients):
    folder = for_clients / ".nv-meta"
    counts = json.loads((folder / ".info.json").read_text())["shard_counts"]
    assert counts == {name: count_samples(for_clients / name) for name in ("000.tar", "002.tar")}
    assert json.loads((folder / "split.yaml").read_text())["split_parts"]["train"] == list(counts)
    dataset = json.loads((folder / "dataset.yaml").read_text())
    assert dataset["sample_type"]["__class__"] == "ImageClassificationSample"
    assert dataset["field_map"] == {"image": "png", "label": "cls"}
    with sqlite3.connect(folder / "index.sqlite") as connection:
        samples = connection.execute(
            "select tar_file_id, sample_key, byte_offset, byte_size from samples"
        ).fetchall()
    assert len({key for _, key, _, _ in samples}) == sum(counts.values())
    for number, name in enumerate(counts):
        index = (for_clients / f"{name}.idx").read_bytes()
        offsets = struct.unpack(f"<{len(index) // 8}Q", index)
        ranges = [(offset, offset + size) for n, _, offset, size in samples if n == number]
        assert ranges == list(itertools.pairwise(offsets))
        for start, _ in ranges:
            assert (for_clients / name).read_bytes()[start + 257 : start + 262] == b"ustar"


def test_a_finished_export_gets_the_files_of_a_client_later(world, tmp_path):
    out = Path(export(world, "half", tmp_path / "out"))
    assert not (out / "sizes.json").exists()
    export(world, "half", out, sizes_json=True)
    assert (out / "sizes.json").is_file()
    assert verify(world, [out], check_sources=True) == []


def test_an_export_of_an_earlier_version_is_read_as_before(world, tmp_path, caplog):
    out = Path(export(world, "half", tmp_path / "out"))
    manifest = json.loads((out / ".curate" / "manifest.json").read_text())
    for name in ("complement", "unique_keys", "empty_shards", "key_rule"):
        del manifest[name]
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["num_samples"]]
    (out / "001.tar").unlink()
    (out / ".curate" / "index.parquet").rename(out / "index.parquet")
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / ".curate" / "manifest.json").unlink()
    (out / ".curate").rmdir()
    assert verify(world, [out], check_sources=True) == []
    with caplog.at_level("INFO", "curate"):
        export(world, "half", out)
    assert "nothing to do" in caplog.text
