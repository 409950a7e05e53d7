"""Every kind of broken or hostile input has one outcome, within 30 seconds and 2 GiB.

And none spoils its neighbours.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import rows, run_curate
from kinds import KINDS, PICKLE, SOUND, table, tar

from curate.catalog.catalog import Catalog
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.report.stage import report
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.verify import verify

DOCS = Path(__file__).resolve().parents[2] / "docs" / "inputs.md"
# VmHWM, because getrusage tells of the process too that this one was forked from.
EMBED_AND_PRINT_PEAK = """
import re, sys
from curate.stages.embed.stage import embed
embed(sys.argv[1], sys.argv[2:], encoder="pixels", captions=True, workers=1)
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()).group(1)) / 2**20)
"""


class Embedded(NamedTuple):
    """One corpus of all kinds, with a sound shard at its end; the shards by kind."""

    catalog: Catalog
    shards: dict[str, str]
    peak_memory: float  # GiB


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Embedded:
    """By one process, in less than 30 seconds: a kind that hangs, or takes 2 GiB, fails."""
    folder = tmp_path_factory.mktemp("hostile")
    contents = {name: kind.make() for name, kind in KINDS.items()} | {"sound": tar(SOUND)}
    shards = {}
    for number, (name, content) in enumerate(contents.items()):
        path = folder / f"{number:03d}.tar"
        path.write_bytes(content)
        shards[name] = str(path)
    catalog = folder / "catalog"
    command = [sys.executable, "-c", EMBED_AND_PRINT_PEAK, str(catalog), *shards.values()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return Embedded(Catalog(catalog), shards, float(run.stdout))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_its_outcome(embedded, name):
    kind, catalog = KINDS[name], embedded.catalog
    ((shard_id,),) = rows(
        catalog, "select shard_id from shards where url = ?", embedded.shards[name]
    )
    samples = rows(catalog, "select count(*) from samples where shard_id = ?", shard_id)
    assert samples == [(kind.num_used,)]
    failures = rows(catalog, "select sample_id, error from failures where shard_id = ?", shard_id)
    assert len(failures) == kind.num_failed
    assert not kind.reason or any(kind.reason in error for _, error in failures), failures
    counts = rows(
        catalog, "select num_embedded, num_failed from embedded_shards where shard_id = ?", shard_id
    )
    num_failed_samples = sum(sample_id is not None for sample_id, _ in failures)
    expected = [] if kind.is_unreadable else [(kind.num_used, num_failed_samples)]
    assert counts == expected, "conservation"


def test_a_sound_neighbour_is_embedded_and_memory_is_bounded(embedded):
    sound = rows(
        embedded.catalog,
        "select num_embedded from embedded_shards join shards using (shard_id) where url = ?",
        embedded.shards["sound"],
    )
    assert sound == [(1,)]
    assert embedded.peak_memory < 2


# The command line, its exit status, and what it says. {folder} is the test's folder.
REFUSED = {
    "pipe": (["embed", "pipe:touch {folder}/touched"], 1, "never runs shell commands"),
    "nothing there": (["embed", "{folder}/nothing-*.tar"], 1, "no shard at"),
    "changed": (
        ["embed", "{folder}/changed.tar", "--encoder", "pixels"],
        1,
        "has changed since it was embedded",
    ),
    "unknown step": (["run", "{folder}/step.toml"], 2, "[mine] is no step"),
    "unknown key": (["run", "{folder}/key.toml"], 2, "cluster has no option 'kk'; it takes: "),
    "wrong type": (["run", "{folder}/type.toml"], 2, "--k [1]: give a whole number"),
    "no TOML": (["run", "{folder}/broken.toml"], 1, "is no TOML"),
    "no Unicode": (["run", "{folder}/bytes.toml"], 1, "is no TOML"),
    "no SELECT": (["query", "drop table samples"], 1, "only one SELECT"),
    "attach": (["query", "attach '{folder}/other.duckdb'"], 1, "only one SELECT"),
    "other files": (
        ["query", "select * from read_text('/etc/passwd')"],
        1,
        "disabled by configuration",
    ),
    "a name that is a path": (["cluster", "--name", "../up"], 2, "cannot be a name"),
    "captions without a text tower": (
        ["embed", "{folder}/sound.tar", "--captions", "--encoder", "onnx:{folder}/none.onnx"],
        2,
        "has no text tower: use open_clip:MODEL/PRETRAINED",
    ),
    "captions later": (
        ["embed", "{folder}/sound.tar", "--captions", "--encoder", "pixels"],
        1,
        "begun without --captions: give the one with captions another --name",
    ),
    "a pickled checkpoint": (
        [
            "embed",
            "{folder}/sound.tar",
            "--encoder",
            "timm:resnet18",
            "--checkpoint",
            "{folder}/pickle.pt",
        ],
        1,
        "pickle.pt",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_and_changes_nothing(tmp_path, name):
    for file in ("sound.tar", "changed.tar"):
        (tmp_path / file).write_bytes(tar(SOUND))
    recipes = {
        "step": "[mine]\n",
        "key": "[cluster]\nkk = 3\n",
        "type": "[cluster]\nk = [1]\n",
        "broken": "[cluster\n",
    }
    for file, text in recipes.items():
        (tmp_path / f"{file}.toml").write_text(text)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe[cluster]")
    (tmp_path / "pickle.pt").write_bytes(PICKLE)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "changed.tar")], encoder="pixels", workers=1)
    (tmp_path / "changed.tar").write_bytes(tar([*SOUND, ("more.jpg", SOUND[0][1])]))
    words, status, reason = REFUSED[name]
    words = [word.format(folder=tmp_path) for word in words]
    run = run_curate(*words, "-c", catalog.path, timeout=60)
    assert run.returncode == status, run.stderr
    assert reason in run.stderr
    assert run.stderr.splitlines()[-1].startswith("curate: ")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "touched").exists()
    assert rows(catalog, "select count(*) from samples") == [(1,)]


def test_no_member_was_executed(embedded):
    assert not Path("curate-was-here").exists()


def test_the_table_in_the_docs_is_that_of_the_kinds():
    assert len(KINDS) >= 40
    message = "python tests/hostile/kinds.py prints the table"
    assert table() in DOCS.read_text(encoding="utf-8"), message


@pytest.mark.parametrize("name", ["JSON that is none", "JSON nested without end"])
def test_a_label_that_cannot_be_read_is_a_failure(tmp_path, name):
    (tmp_path / "a.tar").write_bytes(KINDS[name].make())
    catalog, url = Catalog(tmp_path / "catalog"), str(tmp_path / "a.tar")
    embed(catalog, [url], encoder="pixels", label="json:label", workers=1)
    ((error,),) = rows(catalog, "select error from failures")
    assert "cannot read the label" in error


def test_html_in_names_and_captions_is_escaped_in_the_report(embedded, tmp_path):
    score(embedded.catalog, "random")
    path = report(embedded.catalog, tmp_path / "report.html", scoring="random")
    text = Path(path).read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert not re.search(r"<script>alert|<img src=x|<u>cat", text)


@pytest.mark.parametrize("options", [{}, {"samples_per_shard": 7}])
def test_what_was_used_is_exported_byte_for_byte_and_no_name_leads_out_of_the_folder(
    embedded, tmp_path, options
):
    score(embedded.catalog, "random")
    select(embedded.catalog, keep=1.0, scoring="random", name="all")
    export(embedded.catalog, "all", tmp_path / "out", **options)
    assert verify(embedded.catalog, [tmp_path / "out"], check_sources=True) == []
    assert {path.parent for path in tmp_path.rglob("*.tar")} == {tmp_path / "out"}
