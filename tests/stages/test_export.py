import hashlib
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash
from conftest import add_scoring, members, png, rows, write_corpus, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.formats.samples import iterate_samples
from curate.formats.shard_patterns import expand_patterns
from curate.formats.tar import TarReader
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.export.layout import _relative_paths
from curate.stages.export.stage import export
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.storage.locks import LOCK_NAME

# (name of the shard, key) -> for each extension the SHA-256 of the member.
MemberHashes = dict[tuple[str, str], dict[str, str]]

webdataset_leaves_files_open = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def selected(catalog) -> Catalog:
    select(catalog, keep=0.5, strategy="random", name="half")
    return catalog


def hash_members(path: Path) -> MemberHashes:
    """The members of a shard, read by the standard library."""
    hashes: MemberHashes = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            data = tar.extractfile(member).read()
            digest = hashlib.sha256(data).hexdigest()
            hashes.setdefault((path.name, key), {})[extension] = digest
    return hashes


def hash_selected(catalog: Catalog, selection: str = "half") -> MemberHashes:
    """The members of a selection in its source shards."""
    selected = rows(
        catalog,
        "select url, key from members join samples using (sample_id) "
        "join shards using (shard_id) where selection = ?",
        selection,
    )
    keys = {(Path(url).name, key) for url, key in selected}
    hashes: MemberHashes = {}
    for url in {url for url, _ in selected}:
        hashes |= hash_members(Path(url))
    return {key: digests for key, digests in hashes.items() if key in keys}


def hash_exported(out: Path) -> MemberHashes:
    """The members of an export."""
    hashes: MemberHashes = {}
    for path in sorted(out.rglob("*.tar")):
        hashes |= hash_members(path)
    return hashes


def read_files(out: Path) -> dict[str, bytes]:
    """What is in an export's folder, by name."""
    return {
        path.name: path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != LOCK_NAME
    }


def duplicate_shards() -> dict[str, list]:
    """Two shards with the same samples."""
    samples = [(f"{position}", {"png": png(position)}) for position in range(6)]
    return {"a.tar": samples, "b.tar": samples}


def load_manifest(out: Path) -> dict:
    return json.loads((out / ".curate" / "manifest.json").read_text())


def test_every_member_comes_out_byte_for_byte_in_a_shard_of_the_same_name(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out"))
    assert hash_exported(out) == hash_selected(selected)
    assert len(hash_exported(out)) == 15


@webdataset_leaves_files_open
def test_webdataset_reads_the_shards(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out"))
    urls = sorted(map(str, out.glob("*.tar")))
    keys = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    sql = "select key from members join samples using (sample_id) order by sample_id"
    assert keys == [key for (key,) in rows(selected, sql)]


def test_the_manifest_and_the_index_say_what_was_exported(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out"))
    manifest = load_manifest(out)
    assert manifest["num_samples"] == 15
    assert manifest["num_shards"] == 3
    assert manifest["layout"] == "mirror"
    assert manifest["keys"] == "as they came"
    assert manifest["selection"]["selection"] == "half"
    assert [(step["stage"], step["name"]) for step in manifest["lineage"]] == [("select", "half")]
    for shard in manifest["shards"]:
        data = (out / shard["path"]).read_bytes()
        assert len(data) == shard["num_bytes"]
        assert f"xxh3:{xxhash.xxh3_128(data).hexdigest()}" == shard["checksum"]
    assert sum(shard["num_samples"] for shard in manifest["shards"]) == 15
    assert {source["checksum"] for source in manifest["sources"]} == {
        f"xxh3:{xxhash.xxh3_128(Path(url).read_bytes()).hexdigest()}"
        for (url,) in rows(selected, "select url from shards")
    }
    assert {(source["url"], source["etag"]) for source in manifest["sources"]} == set(
        rows(selected, "select url, etag from shards")
    )
    index = pq.read_table(out / ".curate" / "index.parquet").to_pylist()
    assert [row["sample_id"] for row in index] == members(selected, "half")
    assert {(row["shard"], row["key"]) for row in index} == set(hash_selected(selected))
    assert all(row["exported_key"] == row["key"] for row in index)


def test_repacking_fills_shards_evenly_and_changes_keys_that_collide(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out", samples_per_shard=8))
    paths = sorted(out.glob("*.tar"))
    assert [path.name for path in paths] == ["000000.tar", "000001.tar"]
    sizes = []
    for path in paths:
        with path.open("rb") as file:
            keys = [sample.key for sample in iterate_samples(TarReader(file))]
        assert len(keys) == len(set(keys))
        sizes.append(len(keys))
    assert sum(sizes) == 15
    assert max(sizes) - min(sizes) <= 1

    def count_samples(hashes: MemberHashes) -> Counter:
        return Counter(tuple(sorted(digests.items())) for digests in hashes.values())

    assert count_samples(hash_exported(out)) == count_samples(hash_selected(selected))
    index = pq.read_table(out / ".curate" / "index.parquet").to_pylist()
    changed = [row for row in index if row["exported_key"] != row["key"]]
    assert {(row["shard"], row["exported_key"]) for row in index} == set(hash_exported(out))
    assert all(row["exported_key"] == f"{row['sample_id'] >> 24}-{row['key']}" for row in changed)
    assert changed
    assert load_manifest(out)["keys"] == (
        f"{len(changed)} keys have the input shard's id, or the sample's, in front: "
        "exported_key in .curate/index.parquet"
    )


def test_one_big_shard_keeps_long_and_colliding_names_apart(tmp_path):
    long_key = "folder/" + "k" * 180
    for name in ("a", "b"):
        samples = [
            (long_key, {"png": png(1), "cls": name.encode()}),
            ("x", {"png": png(2)}),
            (long_key, {"png": png(3)}),
        ]
        write_shard(tmp_path / "in" / f"{name}.tar", samples, tarfile.PAX_FORMAT)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "in")], encoder="pixels")
    name = select(catalog, keep=1.0, strategy="random")
    out = Path(export(catalog, name, tmp_path / "out", samples_per_shard=100))
    with tarfile.open(out / "000000.tar") as tar:
        names = [member.name for member in tar if member.name.endswith(".png")]
    assert names == [
        f"folder/0-{'k' * 180}.png",
        "0-x.png",
        f"folder/0-2-{'k' * 180}.png",
        f"folder/1-{'k' * 180}.png",
        "1-x.png",
        f"folder/1-{(1 << 24) + 2}-{'k' * 180}.png",
    ]


def test_shards_of_the_same_name_in_different_folders_stay_apart(tmp_path):
    for folder in ("x", "y/z"):
        write_corpus(tmp_path / "corpus" / folder, 1)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "corpus/x"), str(tmp_path / "corpus/y/z")], encoder="pixels")
    out = Path(export(catalog, select(catalog, keep=1.0, strategy="random"), tmp_path / "out"))
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.tar")) == [
        "x/000.tar",
        "y/z/000.tar",
    ]


@webdataset_leaves_files_open
def test_an_index_needs_no_second_copy(selected, shards, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out", index_only=True))
    assert set(read_files(out)) == {"index.parquet", "manifest.json"}
    index = pq.read_table(out / ".curate" / "index.parquet").to_pylist()
    dataset = webdataset.WebDataset(shards, shardshuffle=False)
    dataset = dataset.select(curate.kept(selected, "half"))
    kept = [(sample["__url__"], sample["__key__"]) for sample in dataset]
    assert kept == [(row["url"], row["key"]) for row in index]


def test_kept_refuses_what_it_does_not_know(selected):
    with pytest.raises(CurateError, match="no selection called 'none'; there are: half"):
        curate.kept(selected, "none")
    with pytest.raises(CurateError, match="is not in the catalog"):
        curate.kept(selected, "half")({"__url__": "elsewhere.tar", "__key__": "0001"})


def test_the_same_export_again_does_nothing_and_another_is_refused(selected, tmp_path, caplog):
    out = Path(export(selected, "half", tmp_path / "out"))

    def modification_times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != LOCK_NAME}

    before = modification_times()
    with caplog.at_level("INFO", "curate"):
        export(selected, "half", out)
    assert "nothing to do" in caplog.text
    assert modification_times() == before
    with pytest.raises(CurateError, match="holds other files or another export"):
        export(selected, "half", out, samples_per_shard=3)


@pytest.mark.parametrize("name", ["000.tar", "index.parquet", "manifest.json"])
def test_a_lost_file_is_written_again(selected, tmp_path, name):
    out = Path(export(selected, "half", tmp_path / "out"))
    before = read_files(out)
    next(out.rglob(name)).unlink()
    if name == "manifest.json":  # as a kill just before the end leaves it
        (out / ".curate-export").write_text(json.loads(before[name])["fingerprint"])
    export(selected, "half", out)
    assert read_files(out) == before


def test_a_source_that_changed_is_not_exported(selected, shards, tmp_path):
    os.utime(shards[0])
    export(selected, "half", tmp_path / "touched")
    Path(shards[0]).write_bytes(Path(shards[0]).read_bytes().replace(b"picture 3", b"pixture 3"))
    with pytest.raises(CurateError, match=r"000\.tar' has changed since it was embedded"):
        export(selected, "half", tmp_path / "changed")
    assert not list((tmp_path / "changed").glob("*.tar"))
    Path(shards[0]).unlink()
    with pytest.raises(CurateError, match="cannot be read .*: put it back"):
        export(selected, "half", tmp_path / "changed")


def test_two_workers_write_the_same_files(selected, tmp_path):
    by_one, by_two = (
        Path(export(selected, "half", tmp_path / str(workers), workers=workers))
        for workers in (1, 2)
    )
    assert [path.read_bytes() for path in sorted(by_one.glob("*.tar"))] == [
        path.read_bytes() for path in sorted(by_two.glob("*.tar"))
    ]


def test_hardest_first_is_what_is_exported(catalog, tmp_path):
    sample_ids = [sample_id for (sample_id,) in rows(catalog, "select sample_id from samples")]
    add_scoring(catalog, "toy", {sample_id: float(sample_id % 7) for sample_id in sample_ids})
    name = select(catalog, keep=0.1, scoring="toy", balance=0)
    assert name == "toy-hardest-0.1-balance0"
    out = Path(export(catalog, name, tmp_path / "out"))
    assert hash_exported(out) == hash_selected(catalog, name)


def export_shards(
    folder: Path, shards: dict[str, list], where: str | None = None, **options: Any
) -> Path:
    """Write and embed shards, select all samples that `where` allows, and export them."""
    for name, samples in shards.items():
        write_shard(folder / "in" / name, samples)
    catalog = Catalog(folder / "catalog")
    embed(catalog, [str(folder / "in")], encoder="pixels", workers=1)
    name = select(catalog, keep=1.0, strategy="random", where=where)
    return Path(export(catalog, name, folder / "out", **options))


@webdataset_leaves_files_open
def test_samples_of_one_key_stay_two_when_what_was_between_them_is_gone(tmp_path):
    samples = [
        ("a", {"png": png(1), "cls": b"0"}),
        ("b", {"png": png(2)}),
        ("a", {"jpg": png(3), "txt": b"second"}),
        ("c", {"png": png(4)}),
    ]
    out = export_shards(tmp_path, {"000.tar": samples}, where="key in ('a', 'c')")
    exported = [
        (sample["__key__"], sorted(name for name in sample if name[0] != "_"))
        for sample in webdataset.WebDataset(str(out / "000.tar"), shardshuffle=False)
    ]
    assert exported == [("a", ["cls", "png"]), ("0-a", ["jpg", "txt"]), ("c", ["png"])]
    assert "1 keys have the input shard's id" in load_manifest(out)["keys"]
    with tarfile.open(out / "000.tar") as tar:
        assert tar.extractfile("0-a.jpg").read() == png(3)


def test_a_prefixed_key_is_not_one_that_exists_already(tmp_path):
    shards = {
        "000.tar": [("x", {"png": png(1)})],
        "001.tar": [("x", {"png": png(2)}), ("1-x", {"png": png(3)})],
    }
    out = export_shards(tmp_path, shards, samples_per_shard=10)
    with tarfile.open(out / "000000.tar") as tar:
        assert tar.getnames() == ["0-x.png", f"1-{1 << 24}-x.png", "1-x.png"]


def test_a_damaged_shard_with_changed_keys_is_written_again(tmp_path):
    out = export_shards(tmp_path, duplicate_shards(), samples_per_shard=20)
    whole = (out / "000000.tar").read_bytes()
    (out / "000000.tar").write_bytes(whole[:5000])
    export(Catalog(tmp_path / "catalog"), "random-1", out, samples_per_shard=20)
    assert (out / "000000.tar").read_bytes() == whole


def test_shards_stay_inside_the_folder_and_apart(tmp_path):
    assert _relative_paths(["/d/a.tar", "s3://b/b.tar"]) == {
        "/d/a.tar": "d/a.tar",
        "s3://b/b.tar": "s3/b/b.tar",
    }
    assert set(_relative_paths(["s3://b/x.tar", "gs://b/x.tar"]).values()) == {
        "s3/b/x.tar",
        "gs/b/x.tar",
    }
    with pytest.raises(CurateError, match="without"):
        expand_patterns(["s3://bucket/../other/x.tar"])
    path = write_shard(tmp_path / "in/000.tar", [("a", {"png": png(1)})])
    patterns = [str(path), f"file://{path}", f"file://{tmp_path}/in/../in/000.tar"]
    assert expand_patterns(patterns) == [str(path)]


def test_the_manifest_names_only_the_sources_it_used(tmp_path):
    out = export_shards(tmp_path, duplicate_shards(), where="url like '%a.tar'")
    assert [Path(source["url"]).name for source in load_manifest(out)["sources"]] == ["a.tar"]
    write_shard(tmp_path / "in" / "c.tar", [("z", {"png": png(9)})])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "in")], encoder="pixels")
    ((name,),) = rows(catalog, "select selection from selections")
    export(catalog, name, out)  # a new shard changes nothing for it
    export(catalog, name, tmp_path / "other" / "out")
    assert rows(catalog, "select export from exports order by 1") == [("out",), ("out-2",)]


def test_a_refused_folder_is_left_as_it_was(selected, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_text("x")
    with pytest.raises(CurateError, match="holds other files"):
        export(selected, "half", tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["x.jpg"]


def test_the_lineage_is_that_of_the_selection_whatever_was_replaced_since(
    catalog, tmp_path, caplog
):
    cluster(catalog, k=3)
    score(catalog, "ssl_prototypes")
    name = select(catalog, keep=0.5)
    cluster(catalog, k=7)
    assert rows(catalog, "select kind, name from lineage where out_of_date order by run_id") == [
        ("scoring", "ssl_prototypes"),
        ("selection", name),
    ]
    select(catalog, keep=0.5)
    assert (
        "the scoring 'ssl_prototypes' was made before the last change of 'kmeans': "
        "`curate score ssl_prototypes`"
    ) in caplog.text
    manifest = load_manifest(Path(export(catalog, name, tmp_path / "out")))
    clusterings = [step for step in manifest["lineage"] if step["stage"] == "cluster"]
    assert [step["arguments"]["k"] for step in clusterings] == [3]
