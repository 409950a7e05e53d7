import hashlib
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import add_scoring, members, png, rows, write_corpus, write_shard

import curate
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.shards import samples
from curate.stages.embed import embed
from curate.stages.export import export
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
    assert [step["kind"] for step in manifest["lineage"]] == ["selection"]
    for shard in manifest["shards"]:
        data = (out / shard["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["num_bytes"], shard["sha256"])
    assert sum(shard["num_samples"] for shard in manifest["shards"]) == 15
    assert {source["fingerprint"] for source in manifest["sources"]} == {
        hashlib.sha256(Path(url).read_bytes()).hexdigest() for (url,) in rows(selected, "select url from shards")
    }
    index = pq.read_table(out / "index.parquet").to_pylist()
    assert [row["sample_id"] for row in index] == members(selected, "half")
    assert {(row["shard"], row["key"]) for row in index} == set(wanted(selected))


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
    changed = [row for row in index if row["key_prefix"]]
    assert {(row["shard"], (row["key_prefix"] or "") + row["key"]) for row in index} == set(exported(out))
    assert all(row["key_prefix"] == f"{row['sample_id'] >> 24}-" for row in changed)
    said = json.loads((out / "manifest.json").read_text())["keys"]
    assert changed
    assert said == f"{len(changed)} keys have the input shard's id in front: key_prefix in index.parquet"


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
    assert names == [f"folder/0-0-{'k' * 180}.png", "0-x.png", f"folder/0-2-{'k' * 180}.png",
                     f"folder/1-{1 << 24}-{'k' * 180}.png", "1-x.png", f"folder/1-{(1 << 24) + 2}-{'k' * 180}.png"]  # fmt: skip


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
    assert exported(out) == wanted(catalog, "toy-hardest-0.1")
