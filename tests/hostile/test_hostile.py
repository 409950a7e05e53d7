"""Every kind of broken or hostile input has one outcome, within 30 seconds and 2 GiB, and spoils nothing beside it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import rows
from kinds import EVIL, KINDS, SOUND, table, tar

from curate.catalog import Catalog

DOCS = Path(__file__).resolve().parents[2] / "docs" / "inputs.md"
# VmHWM, because getrusage tells of the process too that this one was forked from.
EMBED = """
import re, sys
from curate.stages.embed import embed
embed(sys.argv[1], sys.argv[2:], encoder="pixels", workers=1)
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()).group(1)) / 2**20)
"""


class Embedded(NamedTuple):
    """One corpus of all kinds, with a sound shard at its end."""

    catalog: Catalog
    shards: dict[str, str]
    peak: float


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Embedded:
    """By one process, in less than 30 seconds: a kind that hangs, or takes 2 GiB, fails the tests."""
    folder = tmp_path_factory.mktemp("hostile")
    shards = {}
    for number, (name, make) in enumerate(
        [*((name, kind.make) for name, kind in KINDS.items()), ("sound", lambda: tar(SOUND))]
    ):
        shards[name] = str(folder / f"{number:03d}.tar")
        Path(shards[name]).write_bytes(make())
    asked = [sys.executable, "-c", EMBED, str(folder / "catalog"), *shards.values()]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
    return Embedded(Catalog(folder / "catalog"), shards, float(run.stdout))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_its_outcome(embedded, name):
    kind, here = KINDS[name], f"shard_id = (select shard_id from shards where url = '{embedded.shards[name]}')"
    failures = rows(embedded.catalog, f"select sample_id, error from failures where {here}")
    assert rows(embedded.catalog, f"select count(*) from samples where {here}") == [(kind.used,)]
    assert len(failures) == kind.failed
    assert not kind.reason or any(kind.reason in error for _, error in failures), failures
    counted = rows(embedded.catalog, f"select num_embedded, num_failed from embedded_shards where {here}")
    samples_failed = sum(sample_id is not None for sample_id, _ in failures)
    assert counted == ([] if kind.refused else [(kind.used, samples_failed)]), "conservation"


def test_nothing_beside_them_is_spoilt_and_memory_is_bounded(embedded):
    sound = f"select num_embedded from embedded_shards join shards using (shard_id) where url = '{embedded.shards['sound']}'"
    assert rows(embedded.catalog, sound) == [(1,)]
    assert embedded.peak < 2


REFUSED = {
    "pipe": (["embed", "pipe:touch {folder}/here"], "never runs shell commands"),
    "nothing there": (["embed", "{folder}/nothing-*.tar"], "no shard at"),
    "changed": (["embed", "{folder}/changed.tar", "--encoder", "pixels"], "has changed since it was embedded"),
    "unknown stage": (["run", "{folder}/stage.toml"], "[mine] is no stage"),
    "unknown key": (["run", "{folder}/key.toml"], "unexpected keyword argument 'kk'"),
    "wrong type": (["run", "{folder}/type.toml"], "k = [1] is not"),
    "no TOML": (["run", "{folder}/broken.toml"], "is no TOML"),
    "no Unicode": (["run", "{folder}/bytes.toml"], "is no TOML"),
    "no SELECT": (["query", "drop table samples"], "only one SELECT"),
    "attach": (["query", "attach '{folder}/other.duckdb'"], "only one SELECT"),
    "other files": (["query", "select * from read_text('/etc/passwd')"], "disabled by configuration"),
    "a name that is a path": (["cluster", "--name", "../up"], "cannot be a name"),
    "a pickled checkpoint": (
        ["embed", "{folder}/sound.tar", "--encoder", "timm:resnet18", "--checkpoint", "{folder}/evil.pt"], "evil.pt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_and_changes_nothing(tmp_path, name):
    from curate.stages.embed import embed

    for file in ("sound.tar", "changed.tar"):
        (tmp_path / file).write_bytes(tar(SOUND))
    texts = {"stage": "[mine]\n", "key": "[cluster]\nkk = 3\n", "type": "[cluster]\nk = [1]\n", "broken": "[cluster\n"}
    for file, text in texts.items():
        (tmp_path / f"{file}.toml").write_text(text)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe[cluster]")
    (tmp_path / "evil.pt").write_bytes(EVIL)
    embed(tmp_path / "catalog", [str(tmp_path / "changed.tar")], encoder="pixels", workers=1)
    (tmp_path / "changed.tar").write_bytes(tar([*SOUND, ("more.jpg", SOUND[0][1])]))
    words, reason = REFUSED[name]
    asked = [sys.executable, "-m", "curate", *(word.format(folder=tmp_path) for word in words), "-c", str(tmp_path / "catalog")]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1, run.stderr
    assert reason in run.stderr
    assert run.stderr.splitlines()[-1].startswith("curate: ")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "here").exists()
    assert rows(Catalog(tmp_path / "catalog"), "select count(*) from samples") == [(1,)]


def test_no_member_was_executed(embedded):
    assert not Path("curate-was-here").exists()


def test_the_table_in_the_docs_is_that_of_the_kinds():
    assert len(KINDS) >= 40
    assert table() in DOCS.read_text(encoding="utf-8"), "python tests/hostile/kinds.py prints the table"


@pytest.mark.parametrize("name", ["JSON that is none", "JSON nested without end"])
def test_a_label_that_cannot_be_read_is_a_failure(tmp_path, name):
    from curate.stages.embed import embed

    (tmp_path / "a.tar").write_bytes(KINDS[name].make())
    embed(tmp_path / "catalog", [str(tmp_path / "a.tar")], encoder="pixels", label="json:label", workers=1)
    ((error,),) = rows(Catalog(tmp_path / "catalog"), "select error from failures")
    assert "cannot read the label" in error


def test_html_in_names_and_captions_is_escaped_in_the_report(embedded, tmp_path):
    from curate.stages.report import report
    from curate.stages.score import score

    score(embedded.catalog, "random")
    text = Path(report(embedded.catalog, tmp_path / "report.html", scoring="random")).read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert not re.search(r"<script>alert|<img src=x|<u>cat", text)


@pytest.mark.parametrize("options", [{}, {"samples_per_shard": 7}])
def test_what_was_used_is_exported_byte_for_byte_and_no_name_leads_out_of_the_folder(embedded, tmp_path, options):
    from curate.stages.export import export
    from curate.stages.score import score
    from curate.stages.select import select
    from curate.stages.verify import verify

    score(embedded.catalog, "random")
    select(embedded.catalog, keep=1.0, scoring="random", name="all")
    export(embedded.catalog, "all", tmp_path / "out", **options)
    assert verify(embedded.catalog, [tmp_path / "out"], sources=True) == []
    assert {path.parent for path in tmp_path.rglob("*.tar")} == {tmp_path / "out"}
