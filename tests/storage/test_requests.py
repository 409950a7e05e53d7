"""How many requests commands send to an object store, which takes time for each, and money.

Those that do not grow with the corpus are told from those that do by two corpora.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_corpus

import curate
from curate.formats.member_roles import MemberRoles
from curate.formats.tombstones import Tombstones
from curate.stages.embed.member_counts import MemberCounts
from curate.stages.embed.registration import make_shard_task, stat_shards
from curate.stages.embed.worker import make_reader
from curate.storage import files

pytest.importorskip("moto", reason="no moto: pip install -e '.[dev]'")
pytest.importorskip("s3fs", reason="no s3fs: pip install -e '.[s3]'")
from counting_store import CountingServer, serve_counting_store

SIZES = (9, 16)  # shards
# What does not grow: a few listings, looks at single files.
MOST_WITHOUT_SHARDS = 12


@pytest.fixture(scope="module")
def store() -> Iterator[CountingServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        serve_counting_store(["corpus", "files", "out"], patch) as server,
    ):
        yield server


@pytest.fixture(scope="module", params=["vectors here", "vectors in the store"])
def requests(
    request: pytest.FixtureRequest,
    store: CountingServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Counter[str]]]:
    """The requests of each command, for both corpora."""
    counts: dict[str, list[Counter[str]]] = {}

    def count(command: str, verb: Callable[..., object], *arguments: Any, **options: Any) -> None:
        with store.count() as command_counts:
            verb(*arguments, **options)
        counts.setdefault(command, []).append(command_counts)

    for size in SIZES:
        name = f"{request.param.replace(' ', '-')}-{size}"
        folder = tmp_path_factory.mktemp(name)
        for path in map(Path, write_corpus(folder / "corpus", size, 2)):
            files.upload(path, f"s3://corpus/{name}/{path.name}")
        catalog, out = folder / "catalog", f"s3://out/{name}"
        pattern, braces = (
            f"s3://corpus/{name}/{shards}.tar" for shards in ("*", f"{{000..{size - 1:03d}}}")
        )
        url = f"s3://files/{name}" if request.param == "vectors in the store" else None
        embed = functools.partial(curate.embed, encoder="pixels@8", workers=1)
        count("first embed", embed, catalog, pattern, files=url)
        count("embed again", embed, catalog, pattern)
        count("embed again, by braces", embed, catalog, braces)
        curate.score(catalog, "random")
        curate.select(catalog, keep=0.5, name="half", scoring="random")
        count("export", curate.export, catalog, "half", out)
        count("export again", curate.export, catalog, "half", out)
        most = [f"s3://corpus/{name}/{shard:03d}.tar" for shard in range(size - 2)]
        count("remove shards", curate.remove, catalog, "shards", most, force=True)
        count("remove", curate.remove, catalog, "embedding", "pixels@8", force=True)
    return counts


def growth(counts: list[Counter[str]], operation: str) -> float:
    """Requests of a kind, such as `GET corpus`, for each more shard."""
    few, many = (one[operation] for one in counts)
    return (many - few) / (SIZES[1] - SIZES[0])


@pytest.mark.parametrize(
    "command",
    ["embed again", "embed again, by braces", "export again", "remove shards", "remove"],
)
def test_nothing_to_do_and_deletions_ask_for_listings_not_for_shards(requests, command):
    few, many = requests[command]
    assert few == many
    assert sum(many.values()) <= MOST_WITHOUT_SHARDS


def test_a_first_embed_asks_twice_for_a_shard(requests):
    counts = requests["first embed"]
    assert [growth(counts, f"{kind} corpus") for kind in ("GET", "HEAD", "LIST")] == [1, 1, 0]
    # The vectors and the rows for the catalog are written, and the rows read.
    is_in_store = "PUT files" in counts[0]
    assert growth(counts, "PUT files") == 2 * is_in_store
    assert growth(counts, "GET files") == 1 * is_in_store
    assert growth(counts, "HEAD files") == growth(counts, "LIST files") == 0
    assert growth(counts, "DELETE files") == 0


def test_an_export_asks_twice_for_a_shard_that_it_reads_and_once_for_one_that_it_writes(requests):
    counts = requests["export"]
    assert [growth(counts, f"{kind} out") for kind in ("PUT", "HEAD", "LIST")] == [1, 0, 0]
    for kind in ("HEAD", "GET"):
        assert growth(counts, f"{kind} corpus") <= 1.5  # some shards keep nothing, others more


def test_what_a_listing_says_of_a_file_is_what_a_look_at_it_says(store, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    urls = [f"s3://corpus/listed/name-{number}.tar" for number in range(9)]
    for url in urls:
        files.upload(tmp_path / "file", url)
    with store.count() as counts:
        stats = files.stat_files([*urls, "s3://corpus/listed/name-none.tar"])
    assert counts["LIST corpus"] <= 2  # one for the file that is not there
    assert {url: files.stat(url) for url in urls} == {url: stats[url] for url in urls}
    assert isinstance(stats["s3://corpus/listed/name-none.tar"], FileNotFoundError)


def test_where_listing_is_refused_each_file_is_looked_at(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    urls = [f"s3://corpus/refused/{number}.tar" for number in range(9)]
    for url in urls:
        files.upload(tmp_path / "file", url)
    filesystem, _ = files._client(urls[0])

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(filesystem, "find", refuse)
    monkeypatch.setattr(filesystem, "ls", refuse)
    with store.count() as counts:
        stats = files.stat_files(urls)
    assert counts["HEAD corpus"] == len(urls)
    assert all(stat.num_bytes == 7 for stat in stats.values())


def test_folders_below_are_not_listed_for_files_without_a_common_beginning(
    store, tmp_path, monkeypatch
):
    (tmp_path / "file").write_bytes(b"content")
    urls = [f"s3://corpus/flat/{number}.tar" for number in range(9)]
    for url in [*urls, "s3://corpus/flat/vectors/0.parquet"]:
        files.upload(tmp_path / "file", url)
    filesystem, _ = files._client(urls[0])

    def list_all_below(*arguments: object, **options: object) -> None:
        raise AssertionError("everything below the folder is listed")

    monkeypatch.setattr(filesystem, "find", list_all_below)
    with store.count() as counts:
        stats = files.stat_files(urls)
    assert sum(counts.values()) == counts["LIST corpus"] == 1
    assert {url: files.stat(url) for url in urls} == stats


def test_many_files_are_deleted_at_once_and_those_that_are_gone_do_not_matter(store, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    urls = [f"s3://out/deleted/{name}" for name in ("a", "b", "c[1]", "d*")]
    for url in urls:
        files.upload(tmp_path / "file", url)
    with store.count() as counts:
        files.delete_files([*urls[:2], "s3://out/deleted/none"])
    assert sum(counts.values()) == 1
    files.delete_files(urls)
    assert files.list_files("s3://out/deleted") == []


def test_a_shard_that_is_replaced_after_the_listing_is_not_used(store, tmp_path):
    url = "s3://corpus/replaced/000.tar"
    first, second = map(Path, write_corpus(tmp_path / "corpus", 2, 3))
    files.upload(first, url)
    task = make_shard_task(0, url, stat_shards([url])[url], None)
    reader = make_reader(str(tmp_path), MemberRoles("cls"), None, Tombstones.load(tmp_path))
    *_, end = reader.read_shards([task], MemberCounts())
    assert end.problem is None
    files.upload(second, url)
    *_, end = reader.read_shards([task], MemberCounts())
    assert end.is_unusable
    assert end.problem == "it changed while it was read"
