"""What an attacker, or a broken program, puts where curate reads: each case was found by attack."""

import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import make_catalog, png, rows, run_curate, write_corpus

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord
from curate.errors import CurateError
from curate.formats.samples import split_name
from curate.formats.tar import BLOCK, TarReader
from curate.formatting import natural_sort_key
from curate.recipe import load_recipe
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.gallery import gallery
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.verify import verify
from curate.storage.checksums import file_checksum


def tar(path: Path, *members: tuple[str, bytes]) -> str:
    """A tar of members; those whose name begins with `->` are links that claim a size."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for name, data in members:
            member = tarfile.TarInfo(name.removeprefix("->"))
            member.size = len(data)
            if name.startswith("->"):
                member.type, member.size = tarfile.SYMTYPE, 4096
            file.addfile(member, None if name.startswith("->") else io.BytesIO(data))
    return str(path)


def keys(catalog: Catalog) -> list[str]:
    return [key for (key,) in rows(catalog, "select key from samples order by sample_id")]


def curate(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return run_curate(*words, **{"timeout": 60, **options})


def test_a_link_has_no_data_whatever_size_it_claims(tmp_path):
    url = tar(
        tmp_path / "a.tar",
        ("s.png", png(0)),
        ("->l.png", b""),
        ("b.png", png(1)),
        ("c.png", png(2)),
    )
    embed(tmp_path / "catalog", url, encoder="pixels")
    assert keys(Catalog(tmp_path / "catalog")) == ["s", "b", "c"]


def test_an_extension_that_is_no_unicode_spoils_nothing(tmp_path):
    url = tar(tmp_path / "a.tar", ("a.png", png(0)), ("b.\udcff", b"x"), ("c.png", png(1)))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, url, encoder="pixels")
    assert keys(catalog) == ["a", "c"]
    assert rows(catalog, "select key, stage, error from failures") == [
        ("b", "member", r"no image among its members (.\xff)")
    ]


def test_hidden_files_of_another_system_are_no_samples(tmp_path):
    url = tar(
        tmp_path / "a.tar",
        ("t/._a.png", b"x"),
        ("t/a.png", png(0)),
        ("t/._a.cls", b"x"),
        ("t/a.cls", b"1"),
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, url, encoder="pixels")
    assert rows(catalog, "select key, label from samples") == [("t/a", "1")]
    assert rows(catalog, "select * from failures") == []


def test_names_and_headers_of_a_megabyte_are_read_in_a_moment():
    started = time.process_time()
    assert split_name("/" * 10**6) == ("", "")
    records = b"4 =\n" * (1 << 18)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    archive = header.tobuf() + records + tarfile.TarInfo("a.png").tobuf() + bytes(2 * BLOCK)
    assert len(list(TarReader(io.BytesIO(archive)))) == 1
    assert time.process_time() - started < 5  # it was most of an hour


class LongMember(io.RawIOBase):
    """A header, half a GiB of zeros, and the end; `largest_read` is the most asked for at once."""

    def __init__(self) -> None:
        member = tarfile.TarInfo("README")
        member.size = 1 << 29
        self.header = member.tobuf()
        self.num_bytes = len(self.header) + member.size + 2 * BLOCK
        self.position = self.largest_read = 0

    def read(self, count: int = -1) -> bytes:
        self.largest_read = max(self.largest_read, count)
        data = self.header[self.position : self.position + count]
        data = data or bytes(min(count, self.num_bytes - self.position))
        self.position += len(data)
        return data


def test_data_that_nobody_opens_takes_no_memory():
    stream = LongMember()
    (member,) = TarReader(stream, should_load=lambda name: False)
    assert (member.data, member.length) == (b"", (1 << 29) + BLOCK)
    assert stream.largest_read <= 1 << 20


def test_pipes_and_devices_are_no_files(tmp_path):
    pipe = tmp_path / "pipe.tar"
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/zero", str(tmp_path)):
        with pytest.raises(CurateError, match="no regular file"):
            embed(tmp_path / "catalog", path, encoder="pixels")
    with pytest.raises(OSError, match="no regular file"):
        file_checksum(pipe)
    catalog = make_catalog(tmp_path)
    run = curate("query", "select 1", "-c", catalog.path, "--format", "csv", "--out", pipe)
    assert run.returncode == 1
    assert "no regular file" in run.stderr
    assert pipe.is_fifo(), "it was not replaced"


def test_no_name_leads_out_of_an_export(tmp_path):
    catalog = make_catalog(tmp_path)
    select(catalog, keep=0.5, strategy="random", name="half")
    with catalog.writing() as connection:
        connection.execute("update shards set url = replace(url, '001.tar', 'x/../../001.tar')")
    with pytest.raises(CurateError, match=r"has '..' in its name"):
        export(catalog, "half", tmp_path / "out")


def test_labels_of_any_length_and_kind_are_labels(tmp_path):
    labels = [b"9" * 5000, b"<\x1b[31m" + b"x" * 100_000, b"7"]
    members = []
    for number, label in enumerate(2 * labels):
        members += [(f"{number}.png", png(number)), (f"{number}.cls", label)]
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, tar(tmp_path / "a.tar", *members), encoder="pixels")
    score(catalog, "supervised_prototypes")
    gallery(catalog, scoring="supervised_prototypes", out=tmp_path / "x.png")
    select(catalog, keep=0.7, strategy="random")
    run = curate("report", "-c", catalog.path)
    assert run.returncode == 0, run.stderr
    charts = list((catalog.path / "figures").glob("*.svg"))
    assert "report-classes.svg" in {path.name for path in charts}
    for path in charts:
        ElementTree.parse(path)  # control characters would be no XML


def test_numbers_in_names_are_in_their_order_at_any_length():
    names = ["p009", "p9", "p10", "p" + "9" * 5000, "q"]
    for unsorted in (names, names[::-1]):  # two that mean the same number have an order too
        assert sorted(unsorted, key=natural_sort_key) == names


def test_nothing_from_a_shard_steers_the_terminal(tmp_path):
    url = tar(tmp_path / "a.tar", ("\x1b[31mred.png", png(0)), ("\x1b[2Jbroken.png", b"x"))
    catalog = tmp_path / "catalog"
    embed(catalog, url, encoder="pixels")
    for words in (("query", "select key from samples"), ("query", "failures")):
        run = curate(*words, "-c", catalog)
        assert r"\x1b[" in run.stdout
        assert "\x1b" not in run.stdout + run.stderr
    select(catalog, keep=1.0, strategy="random", name="all")
    export(catalog, "all", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / ".curate" / "manifest.json").read_text())
    manifest["shards"][0]["path"] = "\x1b[31m\nall is well"
    (tmp_path / "out" / ".curate" / "manifest.json").write_text(json.dumps(manifest))
    (first, *_) = map(str, verify(catalog, [str(tmp_path / "out")]))
    assert "\n" not in first
    assert "\x1b" not in first


@pytest.mark.parametrize(
    "where",
    [
        "1=0)) union all select range from range(10,30) where ((1=1",
        "1=1) union select 5 where (1=1",
        "1) , (2",
        "true; select 1",
        "true) limit (5",
    ],
)
def test_a_where_is_one_condition(catalog, where):
    with pytest.raises(CurateError, match="--where"):
        select(catalog, keep=1.0, strategy="random", where=where)


def test_a_where_may_have_a_subquery_and_a_comment(catalog):
    where = "label in (select '1') -- a remark"
    assert select(catalog, keep=1.0, strategy="random", name="x", where=where) == "x"


@pytest.mark.parametrize(
    "text",
    ['{"shards": 5}', "[" * 100_000, "5", '{"shards": [5], "sources": [], "num_samples": 1}'],
)
def test_a_manifest_that_is_none_is_an_issue(catalog, tmp_path, text):
    select(catalog, keep=0.5, strategy="random", name="half")
    export(catalog, "half", tmp_path / "out")
    (tmp_path / "out" / ".curate" / "manifest.json").write_text(text)
    (issue,) = verify(catalog, [str(tmp_path / "out")])
    assert "its manifest or index cannot be read" in issue.problem


def test_damaged_files_name_the_remedy(catalog):
    cluster(catalog, k=3)
    path = Path(catalog.centroids_file(catalog.require(ClusteringRecord, "kmeans")))
    path.write_bytes(path.read_bytes()[:100])
    remedy = "gone or damaged: remove them, and `curate cluster` makes them again"
    with pytest.raises(CurateError, match=remedy):
        select(catalog, keep=0.5, strategy="density")
    catalog.database_path.write_bytes(b"\0" * 5000)
    run = curate("query", "shards", "-c", catalog.path)
    assert run.returncode == 1
    assert "unexpected" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5000, "is no TOML"),
        ("a = " + "9" * 5000, "is no TOML"),
        ("[score]\nmetrics = ['random']\noptions = 5", "--options? 5"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path, text, reason):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(CurateError, match=reason):
        load_recipe(path, [])


def test_a_metric_that_exits_is_one_line(catalog, tmp_path):
    (tmp_path / "leave.py").write_text("raise SystemExit(0)")
    for options in (
        {"metrics": f"{tmp_path}/leave.py:mine"},
        {"metric_file": f"{tmp_path}/leave.py:mine"},
    ):
        with pytest.raises(CurateError, match="cannot be imported: SystemExit"):
            score(catalog, **options)


def test_memory_without_end_is_refused(catalog):
    with pytest.raises(CurateError, match="--memory inf: give a number above 0"):
        cluster(catalog, memory=float("inf"))


def test_any_terminal_will_do(catalog):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for words in (("list", "metrics"), ("list",), ("query", "select 'Grüße' as 日本")):
        run = curate(*words, "-c", catalog.path, env=ascii_only)
        assert run.returncode == 0, run.stderr


def test_a_closed_stdout_is_no_error():
    run = curate(
        "list",
        "metrics",
        capture_output=False,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(1),
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_bad_neighbour_does_not_spoil_a_corpus(tmp_path):
    write_corpus(tmp_path / "corpus")
    tar(tmp_path / "corpus" / "000-first.tar", ("b.\udcff", b"x"))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "corpus"), encoder="pixels", workers=1)
    counts = rows(
        catalog, "select count(*), sum(num_embedded), sum(num_failed) from embedded_shards"
    )
    assert counts == [(4, 30, 1)]
