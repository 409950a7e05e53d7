import hashlib
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash
from conftest import add_scoring, members, png, rows, write_corpus, write_shard

import curate
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.shards import expand, samples
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.export import export
from curate.stages.packing import _below_common_folder
from curate.stages.score import score
from curate.stages.select import select
from curate.tar import TarReader

LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open


@pytest.fixture
def selected(catalog) -> Catalog:
    select(catalog, keep=0.5, strategy="random", name="half")
    return catalog


def wanted(catalog: Catalog, selection: str = "half") -> dict[tuple[str, str], dict[str, str]]:
    """(shard's name, key) -> hashes of the members, read from the source by the standard library."""
    chosen = set(
        rows(
            catalog,
            "select url, key from members join samples using (sample_id) join shards using (shard_id) where selection = ?",
            selection,
        )
    )
    found: dict[tuple[str, str], dict[str, str]] = {}
    for url in {url for url, _ in chosen}:
        with tarfile.open(url) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if (url, key) in chosen:
                    found.setdefault((Path(url).name, key), {})[kind] = hashlib.sha256(
                        tar.extractfile(member).read()
                    ).hexdigest()
    return found


def exported(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for path in sorted(out.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                found.setdefault((path.name, key), {})[kind] = hashlib.sha256(tar.extractfile(member).read()).hexdigest()
    return found


def test_every_member_comes_out_byte_for_byte_in_a_shard_of_the_same_name(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out"))
    assert exported(out) == wanted(selected)
    assert len(exported(out)) == 15


@LEAKS
def test_webdataset_reads_the_shards(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out"))
    urls = sorted(map(str, out.glob("*.tar")))
    read = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert read == [
        key for (key,) in rows(selected, "select key from members join samples using (sample_id) order by sample_id")
    ]


def test_the_manifest_and_the_index_tell_what_is_there(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["num_samples"], manifest["num_shards"], manifest["layout"], manifest["keys"]) == (
        15,
        3,
        "mirror",
        "as they came",
    )
    assert manifest["selection"]["selection"] == "half"
    assert [(step["stage"], step["name"]) for step in manifest["lineage"]] == [("select", "half")]
    for shard in manifest["shards"]:
        data = (out / shard["path"]).read_bytes()
        assert (len(data), f"xxh3:{xxhash.xxh3_128(data).hexdigest()}") == (shard["num_bytes"], shard["fingerprint"])
    assert sum(shard["num_samples"] for shard in manifest["shards"]) == 15
    assert {source["fingerprint"] for source in manifest["sources"]} == {
        f"xxh3:{xxhash.xxh3_128(Path(url).read_bytes()).hexdigest()}" for (url,) in rows(selected, "select url from shards")
    }
    index = pq.read_table(out / "index.parquet").to_pylist()
    assert [row["sample_id"] for row in index] == members(selected, "half")
    assert {(row["shard"], row["key"]) for row in index} == set(wanted(selected))
    assert all(row["exported_key"] == row["key"] for row in index)


def test_repacking_fills_shards_evenly_and_tells_apart_keys_that_meet(selected, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out", samples_per_shard=8))
    paths = sorted(out.glob("*.tar"))
    assert [path.name for path in paths] == ["000000.tar", "000001.tar"]
    sizes = []
    for path in paths:
        with path.open("rb") as file:
            found = [sample.key for sample in samples(TarReader(file))]
        assert len(found) == len(set(found))
        sizes.append(len(found))
    assert sum(sizes) == 15
    assert max(sizes) - min(sizes) <= 1
    content = Counter(tuple(sorted(hashes.items())) for hashes in wanted(selected).values())
    assert Counter(tuple(sorted(hashes.items())) for hashes in exported(out).values()) == content
    index = pq.read_table(out / "index.parquet").to_pylist()
    changed = [row for row in index if row["exported_key"] != row["key"]]
    assert {(row["shard"], row["exported_key"]) for row in index} == set(exported(out))
    assert all(row["exported_key"] == f"{row['sample_id'] >> 24}-{row['key']}" for row in changed)
    said = json.loads((out / "manifest.json").read_text())["keys"]
    assert changed
    assert said == f"{len(changed)} keys have the input shard's id in front: exported_key in index.parquet"


def test_one_big_shard_keeps_long_and_colliding_names_apart(tmp_path):
    long = "folder/" + "k" * 180
    for name in ("a", "b"):
        twins = [(long, {"png": png(1), "cls": name.encode()}), ("x", {"png": png(2)}), (long, {"png": png(3)})]
        write_shard(tmp_path / "in" / f"{name}.tar", twins, tarfile.PAX_FORMAT)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "in")], encoder="pixels")
    out = Path(export(catalog, select(catalog, keep=1.0, strategy="random"), tmp_path / "out", samples_per_shard=100))
    with tarfile.open(out / "000000.tar") as tar:
        names = [member.name for member in tar if member.name.endswith(".png")]
    assert names == [f"folder/0-{'k' * 180}.png", "0-x.png", f"folder/0-2-{'k' * 180}.png",
                     f"folder/1-{'k' * 180}.png", "1-x.png", f"folder/1-{(1 << 24) + 2}-{'k' * 180}.png"]  # fmt: skip


def test_shards_of_the_same_name_in_different_folders_stay_apart(tmp_path):
    for folder in ("x", "y/z"):
        write_corpus(tmp_path / "corpus" / folder, 1)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "corpus/x"), str(tmp_path / "corpus/y/z")], encoder="pixels")
    out = Path(export(catalog, select(catalog, keep=1.0, strategy="random"), tmp_path / "out"))
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.tar")) == ["x/000.tar", "y/z/000.tar"]


@LEAKS
def test_an_index_needs_no_second_copy(selected, shards, tmp_path):
    out = Path(export(selected, "half", tmp_path / "out", index_only=True))
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == ["index.parquet", "manifest.json"]
    index = pq.read_table(out / "index.parquet").to_pylist()
    kept = [
        (sample["__url__"], sample["__key__"])
        for sample in webdataset.WebDataset(shards, shardshuffle=False).select(curate.kept(selected, "half"))
    ]
    assert kept == [(row["url"], row["key"]) for row in index]


def test_kept_refuses_what_it_does_not_know(selected):
    with pytest.raises(CurateError, match="no selection called 'none'; there are: half"):
        curate.kept(selected, "none")
    with pytest.raises(CurateError, match="is not in the catalog"):
        curate.kept(selected, "half")({"__url__": "elsewhere.tar", "__key__": "0001"})


def test_the_same_export_again_does_nothing_and_another_is_refused(selected, tmp_path, caplog):
    out = Path(export(selected, "half", tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with caplog.at_level("INFO", "curate"):
        export(selected, "half", out)
    assert "nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }
    with pytest.raises(CurateError, match="holds other files or another export"):
        export(selected, "half", out, samples_per_shard=3)


@pytest.mark.parametrize("victim", ["000.tar", "index.parquet", "manifest.json"])
def test_a_lost_file_is_written_again(selected, tmp_path, victim):
    out = Path(export(selected, "half", tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
    (out / victim).unlink()
    if victim == "manifest.json":  # as a kill just before the end leaves it
        (out / ".curate-export").write_text(json.loads(before[victim])["fingerprint"])
    export(selected, "half", out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == before


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
    one, two = (Path(export(selected, "half", tmp_path / str(workers), workers=workers)) for workers in (1, 2))
    assert [path.read_bytes() for path in sorted(one.glob("*.tar"))] == [
        path.read_bytes() for path in sorted(two.glob("*.tar"))
    ]


def test_hardest_first_is_what_is_exported(catalog, tmp_path):
    add_scoring(catalog, "toy", {row[0]: float(row[0] % 7) for row in rows(catalog, "select sample_id from samples")})
    out = Path(export(catalog, select(catalog, keep=0.1, scoring="toy", balance=0), tmp_path / "out"))
    assert exported(out) == wanted(catalog, "toy-hardest-0.1-balance0")


def everything(folder: Path, shards: dict[str, list], **options) -> Path:
    """Embed the shards, select all that `where` lets through, export."""
    for name, content in shards.items():
        write_shard(folder / "in" / name, content)
    catalog = Catalog(folder / "catalog")
    embed(catalog, [str(folder / "in")], encoder="pixels", workers=1)
    name = select(catalog, keep=1.0, strategy="random", where=options.pop("where", None))
    return Path(export(catalog, name, folder / "out", **options))


@LEAKS
def test_twins_whose_middle_is_gone_do_not_grow_together(tmp_path):
    out = everything(tmp_path, {"000.tar": [
        ("a", {"png": png(1), "cls": b"0"}), ("b", {"png": png(2)}),
        ("a", {"jpg": png(3), "txt": b"second"}), ("c", {"png": png(4)}),
    ]}, where="key in ('a', 'c')")  # fmt: skip
    read = [(sample["__key__"], sorted(kind for kind in sample if kind[0] != "_"))
            for sample in webdataset.WebDataset(str(out / "000.tar"), shardshuffle=False)]  # fmt: skip
    assert read == [("a", ["cls", "png"]), ("0-a", ["jpg", "txt"]), ("c", ["png"])]
    assert "1 keys have the input shard's id" in json.loads((out / "manifest.json").read_text())["keys"]
    with tarfile.open(out / "000.tar") as tar:
        assert tar.extractfile("0-a.jpg").read() == png(3)


def test_a_prefixed_key_is_not_one_that_is_there_already(tmp_path):
    out = everything(tmp_path, {
        "000.tar": [("x", {"png": png(1)})], "001.tar": [("x", {"png": png(2)}), ("1-x", {"png": png(3)})],
    }, samples_per_shard=10)  # fmt: skip
    with tarfile.open(out / "000000.tar") as tar:
        assert tar.getnames() == ["0-x.png", f"1-{1 << 24}-x.png", "1-x.png"]


def test_a_damaged_shard_with_changed_keys_is_written_again(tmp_path):
    folder = tmp_path / "whole"
    twins = {f"{name}.tar": [(f"{place}", {"png": png(place)}) for place in range(6)] for name in "ab"}
    out = everything(folder, twins, samples_per_shard=20)
    whole = (out / "000000.tar").read_bytes()
    (out / "000000.tar").write_bytes(whole[:5000])
    export(Catalog(folder / "catalog"), "random-1", out, samples_per_shard=20)
    assert (out / "000000.tar").read_bytes() == whole


def test_shards_keep_inside_the_folder_and_apart(tmp_path):
    mixed = ["/d/a.tar", "s3://b/b.tar"]
    assert _below_common_folder(mixed) == dict(zip(mixed, ["d/a.tar", "s3/b/b.tar"], strict=True))
    assert set(_below_common_folder(["s3://b/x.tar", "gs://b/x.tar"]).values()) == {"s3/b/x.tar", "gs/b/x.tar"}
    with pytest.raises(CurateError, match="without"):
        expand(["s3://bucket/../other/x.tar"])
    path = write_shard(tmp_path / "in/000.tar", [("a", {"png": png(1)})])
    assert expand([str(path), f"file://{path}", f"file://{tmp_path}/in/../in/000.tar"]) == [str(path)]


def test_the_manifest_names_only_the_sources_it_used(tmp_path):
    twins = {f"{name}.tar": [(f"{place}", {"png": png(place)}) for place in range(6)] for name in "ab"}
    out = everything(tmp_path, twins, where="url like '%a.tar'")
    assert [Path(source["url"]).name for source in json.loads((out / "manifest.json").read_text())["sources"]] == ["a.tar"]
    write_shard(tmp_path / "in" / "c.tar", [("z", {"png": png(9)})])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "in")], encoder="pixels")
    (name,) = [name for (name,) in rows(catalog, "select selection from selections")]
    export(catalog, name, out)  # a new shard changes nothing for it
    export(catalog, name, tmp_path / "other" / "out")
    assert [name for (name,) in rows(catalog, "select export from exports order by 1")] == ["out", "out-2"]


def test_a_refused_folder_is_left_as_it_was(selected, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_text("x")
    with pytest.raises(CurateError, match="holds other files"):
        export(selected, "half", tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["x.jpg"]


def test_the_lineage_is_that_of_the_selection_whatever_was_made_anew_since(catalog, tmp_path, caplog):
    cluster(catalog, k=3)
    score(catalog, "ssl_prototypes")
    name = select(catalog, keep=0.5)
    cluster(catalog, k=7)
    assert rows(catalog, "select kind, name from lineage where out_of_date") == [("scoring", "ssl_prototypes")]
    select(catalog, keep=0.5)
    assert (
        "the scoring 'ssl_prototypes' was made before the last change of 'kmeans': `curate score ssl_prototypes`" in caplog.text
    )
    manifest = json.loads((Path(export(catalog, name, tmp_path / "out")) / "manifest.json").read_text())
    assert [step["arguments"]["k"] for step in manifest["lineage"] if step["stage"] == "cluster"] == [3]
