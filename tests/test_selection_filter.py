"""`curate.kept` in training pipelines: on the shards, on copies of them, and in loader workers."""

import pickle
import shutil
from pathlib import Path

import pytest
import webdataset
from conftest import make_catalog, png, rows, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.selection_filter import hash_key
from curate.stages.embed.stage import embed
from curate.stages.select.stage import select

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Catalog:
    """A catalog of three shards, half of them selected; tests read it only."""
    catalog = make_catalog(tmp_path_factory.mktemp("world"))
    select(catalog, keep=0.5, strategy="random", name="half")
    return catalog


def shard_urls(catalog: Catalog) -> list[str]:
    return [url for (url,) in rows(catalog, "select url from shards order by shard_id")]


def member_keys(catalog: Catalog) -> list[str]:
    sql = "select key from members join samples using (sample_id) order by sample_id"
    return [key for (key,) in rows(catalog, sql)]


def read_keys(urls: list[str], keep: object) -> list[str]:
    dataset = webdataset.WebDataset(urls, shardshuffle=False).select(keep)
    return [sample["__key__"] for sample in dataset]


def test_the_hash_of_a_key_is_that_of_the_database(world):
    for key in ("0001", "v1/ä b", ""):
        assert rows(world, "select md5_number_lower(?)", key) == [(hash_key(key),)]


@pytest.mark.parametrize("prefix", ["", "file:", "file://", "pipe:cat "])
def test_a_shard_is_known_by_what_its_url_stands_for(world, prefix):
    urls = [prefix + url for url in shard_urls(world)]
    assert read_keys(urls, curate.kept(world, "half")) == member_keys(world)


def test_copies_of_the_shards_are_known_by_a_folder_by_prefixes_and_by_their_bytes(world, tmp_path):
    corpus = Path(shard_urls(world)[0]).parent
    copies = [str(tmp_path / Path(url).name) for url in shard_urls(world)]
    for url, copy in zip(shard_urls(world), copies, strict=True):
        shutil.copy(url, copy)
    for root in (tmp_path, str(tmp_path), {f"{tmp_path}/": f"{corpus}/"}, None):
        assert read_keys(copies, curate.kept(world, "half", root=root)) == member_keys(world)
    renamed = tmp_path / "renamed" / "a.tar"
    renamed.parent.mkdir()
    shutil.copy(copies[0], renamed)
    in_first = sum(1 for _ in read_keys(shard_urls(world)[:1], curate.kept(world, "half")))
    assert len(read_keys([str(renamed)], curate.kept(world, "half"))) == in_first


def test_prefixes_may_stand_for_urls(world):
    corpus = Path(shard_urls(world)[0]).parent
    keep = curate.kept(world, "half", root={"s3://bucket/": f"{corpus}/"})
    expected = curate.kept(world, "half")
    for key in ("0000", "0001", "0002", "0003"):
        sample = {"__key__": key}
        theirs = keep(sample | {"__url__": "pipe:aws s3 cp s3://bucket/001.tar -"})
        assert theirs == expected(sample | {"__url__": f"{corpus}/001.tar"})


def test_an_unknown_shard_is_an_error(world, tmp_path):
    other = write_shard(tmp_path / "001.tar", [("0001", {"png": png(5)})])
    for root in (None, {"/nowhere": "/elsewhere"}):
        with pytest.raises(CurateError, match=r"001\.tar' is not in the catalog.*root="):
            curate.kept(world, "half", root=root)({"__url__": str(other), "__key__": "0001"})
    with pytest.raises(CurateError, match="is no copy of"):
        curate.kept(world, "half", root=tmp_path)({"__url__": str(other), "__key__": "0001"})


def test_a_shard_that_came_after_the_selection_is_an_error(tmp_path):
    catalog = make_catalog(tmp_path)
    select(catalog, keep=0.5, strategy="random", name="half")
    select(catalog, keep=0.5, strategy="random", name="quarter", within="half")
    new = write_shard(tmp_path / "corpus" / "new.tar", [("0001", {"png": png(5)})])
    embed(catalog, str(new), encoder="pixels", workers=1)
    select(catalog, keep=1.0, strategy="random", name="within", within="half")
    for name in ("half", "quarter", "within"):
        with pytest.raises(CurateError, match=f"'{name}' was selected before the shard"):
            curate.kept(catalog, name)({"__url__": str(new), "__key__": "0001"})
    select(catalog, keep=1.0, strategy="random", name="all")
    assert curate.kept(catalog, "all")({"__url__": str(new), "__key__": "0001"})


def test_a_shard_of_which_nothing_is_kept_is_no_error(world):
    select(world, keep=1.0, strategy="random", name="first", where="url like '%000.tar'")
    keep = curate.kept(world, "first")
    assert not keep({"__url__": shard_urls(world)[1], "__key__": "0001"})
    assert keep({"__url__": shard_urls(world)[0], "__key__": "0001"})


def test_workers_never_open_the_database(world, monkeypatch):
    urls = shard_urls(world)
    keep = pickle.loads(pickle.dumps(curate.kept(world, "half")))  # as spawned workers get it

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the database was opened")

    monkeypatch.setattr(Catalog, "reading", refuse)
    assert len(read_keys(urls, keep)) == 15


def test_keys_are_known_when_shards_are_shuffled(world):
    keep = curate.kept(world, "half")
    urls = shard_urls(world)
    samples = [
        {"__url__": url, "__key__": f"{position:04d}"} for position in range(10) for url in urls
    ]
    assert sum(map(keep, samples)) == 15
