"""What somebody who means harm, or a broken program, puts where curate reads: each case was found by an attack."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import make_catalog, png, rows, write_corpus

from curate import fingerprints, recipe, shards
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.export import export
from curate.stages.gallery import gallery
from curate.stages.score import score
from curate.stages.select import select
from curate.stages.verify import verify
from curate.tar import TarReader


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


def curate(*words: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "curate", *map(str, words)]
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 60, **options})


def test_a_link_has_no_data_whatever_size_it_claims(tmp_path):
    url = tar(tmp_path / "a.tar", ("s.png", png(0)), ("->l.png", b""), ("b.png", png(1)), ("c.png", png(2)))
    embed(tmp_path / "catalog", url, encoder="pixels")
    assert keys(Catalog(tmp_path / "catalog")) == ["s", "b", "c"]


def test_an_ending_that_is_no_unicode_spoils_nothing(tmp_path):
    url = tar(tmp_path / "a.tar", ("a.png", png(0)), ("b.\udcff", b"x"), ("c.png", png(1)))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, url, encoder="pixels")
    assert keys(catalog) == ["a", "c"]
    assert rows(catalog, "select key, stage, error from failures") == [("b", "member", r"no image among its members (.\xff)")]


def test_hidden_files_of_another_system_are_no_samples(tmp_path):
    url = tar(tmp_path / "a.tar", ("t/._a.png", b"x"), ("t/a.png", png(0)), ("t/._a.cls", b"x"), ("t/a.cls", b"1"))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, url, encoder="pixels")
    assert rows(catalog, "select key, label from samples") == [("t/a", "1")]
    assert rows(catalog, "select * from failures") == []


def test_names_and_headers_of_a_megabyte_are_read_in_a_moment():
    begin = time.process_time()
    assert shards.split_name("/" * 10**6) == ("", "")
    header = tarfile.TarInfo("x")
    header.type, body = tarfile.XHDTYPE, b"4 =\n" * (1 << 18)
    header.size = len(body)
    end = tarfile.TarInfo("a.png")
    assert len(list(TarReader(io.BytesIO(header.tobuf() + body + end.tobuf() + bytes(1024))))) == 1
    assert time.process_time() - begin < 5  # it was most of an hour


def test_data_that_nobody_opens_takes_no_memory():
    class Zeros(io.RawIOBase):
        """A header, half a GiB of nothing, and the end."""

        left = tarfile.TarInfo("README")
        left.size = 1 << 29
        head = left.tobuf()
        at, largest = 0, 0

        def read(self, count: int = -1) -> bytes:
            self.largest = max(self.largest, count)
            data = (self.head[self.at : self.at + count] if self.at < 512 else b"") or bytes(
                min(count, (1 << 29) + 512 + 1024 - self.at)
            )
            self.at += len(data)
            return data

    stream = Zeros()
    (member,) = TarReader(stream, wanted=lambda name: False)
    assert (member.data, member.length) == (b"", (1 << 29) + 512)
    assert stream.largest <= 1 << 20


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (str(tmp_path / "pipe.tar"), "/dev/zero", str(tmp_path)):
        with pytest.raises(CurateError, match="no regular file"):
            embed(tmp_path / "catalog", path, encoder="pixels")
    with pytest.raises(OSError, match="no regular file"):
        fingerprints.of_file(tmp_path / "pipe.tar")
    catalog = make_catalog(tmp_path)
    asked = curate("query", "select 1", "-c", catalog.path, "--format", "csv", "--out", tmp_path / "pipe.tar")
    assert asked.returncode == 1
    assert "no regular file" in asked.stderr
    assert (tmp_path / "pipe.tar").is_fifo(), "it was not replaced"


def test_no_name_leads_out_of_an_export(tmp_path):
    catalog = make_catalog(tmp_path)
    select(catalog, keep=0.5, strategy="random", name="half")
    with catalog.writing() as connection:
        connection.execute("update shards set url = replace(url, '001.tar', 'x/../../001.tar')")
    with pytest.raises(CurateError, match=r"has '..' in its name"):
        export(catalog, "half", tmp_path / "out")


def test_labels_of_any_length_and_kind_are_labels(tmp_path):
    labels = [b"9" * 5000, b"<\x1b[31m" + b"x" * 100_000, b"7"]
    url = tar(tmp_path / "a.tar", *((f"{place}.{kind}", data) for place, label in enumerate(labels)
                                    for kind, data in (("png", png(place)), ("cls", label))))  # fmt: skip
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, url, encoder="pixels")
    score(catalog, "supervised_prototypes")
    gallery(catalog, scoring="supervised_prototypes", out=tmp_path / "x.png")
    select(catalog, keep=0.7, strategy="random")
    asked = curate("report", "-c", catalog.path)
    assert asked.returncode == 0, asked.stderr
    drawn = list((catalog.path / "figures").glob("*.svg"))
    assert {"report-classes.svg"} <= {path.name for path in drawn}
    for path in drawn:
        ElementTree.parse(path)  # control characters would be no XML


def test_numbers_in_names_are_in_their_order_at_any_length():
    names = ["p009", "p9", "p10", "p" + "9" * 5000, "q"]
    for given in (names, names[::-1]):  # two that mean the same number have an order too
        assert sorted(given, key=shards.natural) == names


def test_nothing_from_a_shard_steers_the_terminal(tmp_path):
    url = tar(tmp_path / "a.tar", ("\x1b[31mred.png", png(0)), ("\x1b[2Jbroken.png", b"x"))
    catalog = tmp_path / "catalog"
    embed(catalog, url, encoder="pixels")
    for words in (("query", "select key from samples"), ("query", "failures")):
        asked = curate(*words, "-c", catalog)
        assert r"\x1b[" in asked.stdout
        assert "\x1b" not in asked.stdout + asked.stderr
    select(catalog, keep=1.0, strategy="random", name="all")
    export(catalog, "all", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["shards"][0]["path"] = "\x1b[31m\nall is well"
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    (first, *_) = map(str, verify(catalog, [str(tmp_path / "out")]))
    assert "\n" not in first
    assert "\x1b" not in first


@pytest.mark.parametrize("where", [
    "1=0)) union all select range from range(10,30) where ((1=1", "1=1) union select 5 where (1=1", "1) , (2", "true; select 1",
    "true) limit (5",
])  # fmt: skip
def test_a_where_is_one_condition(catalog, where):
    with pytest.raises(CurateError, match="--where"):
        select(catalog, keep=1.0, strategy="random", where=where)
    assert select(catalog, keep=1.0, strategy="random", name="x", where="label in (select '1') -- a remark") == "x"


@pytest.mark.parametrize("text", ['{"shards": 5}', "[" * 100_000, "5", '{"shards": [5], "sources": [], "num_samples": 1}'])
def test_a_manifest_that_is_none_is_a_fault(catalog, tmp_path, text):
    select(catalog, keep=0.5, strategy="random", name="half")
    export(catalog, "half", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(text)
    (fault,) = verify(catalog, [str(tmp_path / "out")])
    assert "its manifest or index cannot be read" in fault.problem


def test_damaged_files_name_the_remedy(catalog, tmp_path):
    cluster(catalog, k=3)
    path = catalog.centroid_file(catalog.require("clustering", "kmeans"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CurateError, match="gone or damaged: remove them, and `curate cluster` makes them again"):
        score(catalog, "ssl_prototypes")
    catalog.database.write_bytes(b"\0" * 5000)
    asked = curate("query", "shards", "-c", catalog.path)
    assert asked.returncode == 1
    assert "unexpected" not in asked.stderr
    assert len(asked.stderr.splitlines()) == 1


def test_recipes_and_metrics_of_others(catalog, tmp_path):
    for text, reason in (("a = " + "[" * 5000, "is no TOML"), ("a = " + "9" * 5000, "is no TOML"),
                         ("[score]\nmetrics = ['random']\noptions = 5", "options")):  # fmt: skip
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(CurateError, match=reason):
            recipe.load(tmp_path / "r.toml", [])
    (tmp_path / "leave.py").write_text("raise SystemExit(0)")
    with pytest.raises(CurateError, match="cannot be imported: SystemExit"):
        score(catalog, f"{tmp_path}/leave.py:mine")
    with pytest.raises(CurateError, match="--memory inf: give GiB"):
        cluster(catalog, memory=float("inf"))


def test_any_terminal_will_do(catalog):
    for words in (("list", "metrics"), ("list",), ("query", "select 'Grüße' as 日本")):
        asked = curate(*words, "-c", catalog.path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert asked.returncode == 0, asked.stderr
    closed = curate("list", "metrics", capture_output=False, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_bad_neighbour_does_not_spoil_a_corpus(tmp_path):
    write_corpus(tmp_path / "corpus")
    tar(tmp_path / "corpus" / "000-first.tar", ("b.\udcff", b"x"))
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "corpus"), encoder="pixels", workers=1)
    assert rows(catalog, "select count(*), sum(num_embedded), sum(num_failed) from embedded_shards") == [(4, 30, 1)]
