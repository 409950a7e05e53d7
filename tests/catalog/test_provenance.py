"""A set is out of date when its code or what it was made from has changed, through the chain."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import make_catalog, rows, write_corpus

import curate
from curate.catalog import provenance
from curate.catalog.catalog import Catalog
from curate.stages.staleness import find_stale

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkout_runs_without_being_installed(monkeypatch, tmp_path):
    def find_nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", find_nothing)
    catalog = make_catalog(tmp_path)
    assert rows(catalog, "select distinct version from runs") == [("not installed",)]


def test_a_checksum_covers_what_a_module_imports_and_what_that_imports(tmp_path):
    modules = (
        "curate/metrics/prototypes.py",
        "curate/distances.py",  # imported by prototypes
        "curate/errors.py",  # imported by registry, which curate.metrics imports
    )
    for folder in ("curate", "catalog", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)

    def checksum() -> str:
        program = (
            "from curate.catalog.provenance import module_checksum\n"
            "print(module_checksum('curate.metrics.prototypes'))"
        )
        return run_python(program, tmp_path).stdout

    first = checksum()
    assert checksum() == first
    for name in modules:
        with (tmp_path / name).open("a") as source:
            source.write("\n# changed\n")
        changed = checksum()
        assert changed != first, name
        first = changed
    with (tmp_path / "curate/stages/gallery.py").open("a") as source:
        source.write("\n# changed\n")
    assert checksum() == first


def run_python(program: str, package_parent: Path) -> subprocess.CompletedProcess:
    # In its folder, because Python looks for packages there first.
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=package_parent,
        env={**os.environ, "PYTHONPATH": str(package_parent)},
    )


def test_a_changed_helper_of_a_metric_scores_anew_and_makes_its_selection_out_of_date(tmp_path):
    """`distances` is imported by the metric's module, and imports nothing itself."""
    for folder in ("curate", "catalog", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    catalog = make_catalog(tmp_path / "world")

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "curate", *words, "-c", str(catalog.path)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )

    run("cluster", "--k", "3")
    run("score", "ssl_prototypes")
    run("select", "--keep", "0.5", "--name", "half")
    assert "nothing to do" in run("score", "ssl_prototypes").stderr
    assert "by other code" not in run("list", "selections").stdout
    with (tmp_path / "curate" / "distances.py").open("a") as source:
        source.write("\n\ndef unrelated() -> None:\n    pass\n")
    assert "by other code than there is now" in run("list", "scorings").stdout
    assert "from the scoring 'ssl_prototypes', which is out of date" in run("list").stdout
    answer = run("score", "ssl_prototypes")
    assert "scoring 'ssl_prototypes' replaced" in answer.stderr
    assert "before the last change of 'ssl_prototypes'" in run("list", "selections").stdout
    answer = run("export", "half", str(tmp_path / "out"))
    assert (
        "the selection 'half' was made before the last change of 'ssl_prototypes'" in answer.stderr
    )
    assert "before the last change" in (Path(run("report").stdout.strip())).read_text()
    run("select", "--keep", "0.5", "--name", "half")
    assert "before the last change" not in run("list", "selections").stdout


def test_a_metric_of_the_users_own_is_out_of_date_when_its_file_or_its_imports_change(tmp_path):
    catalog = make_catalog(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom curate.random_hash import random_bits\n"
        "def mine(sample_ids):\n    return sample_ids.astype(float)\n"
    )
    before = provenance.file_checksum(file)
    curate.score(catalog, metric_file=f"{file}:mine")
    assert find_stale(catalog) == {}
    file.write_text(file.read_text().replace("astype(float)", "astype(float) + 1"))
    assert provenance.file_checksum(file) != before
    assert find_stale(catalog) == {("scoring", "mine"): "by other code than there is now"}
    curate.score(catalog, metric_file=f"{file}:mine")
    assert find_stale(catalog) == {}


@pytest.fixture
def chain(tmp_path) -> Catalog:
    """Two of three shards embedded, and everything made from them."""
    urls = write_corpus(tmp_path / "corpus")
    catalog = Catalog(tmp_path / "catalog")
    curate.embed(catalog, urls[:2], encoder="pixels", workers=1)
    curate.cluster(catalog, k=3)
    curate.score(catalog, ["ssl_prototypes"])
    curate.select(catalog, keep=0.8, name="most")
    curate.select(catalog, keep=0.5, name="some", within="most")
    curate.export(catalog, "some", tmp_path / "out")
    curate.validate(catalog, ["most"], seeds=2, epochs=1)
    return catalog


def test_an_embedding_that_has_grown_makes_all_that_follows_out_of_date(chain, tmp_path, caplog):
    assert find_stale(chain) == {}
    curate.embed(chain, [str(tmp_path / "corpus")], encoder="pixels", workers=1)
    stale = find_stale(chain)
    assert {name for _, name in stale} == {
        "kmeans",
        "ssl_prototypes",
        "most",
        "some",
        "out",
        "mlp-epochs1",
    }
    assert stale["clustering", "kmeans"] == "before the last change of 'pixels'"
    assert stale["selection", "some"] == "from the selection 'most', which is out of date"
    assert stale["export", "out"] == "from the selection 'some', which is out of date"
    in_sql = curate.query(chain, "select name from lineage where out_of_date").to_pylist()
    assert {row["name"] for row in in_sql} == {name for _, name in stale}
    caplog.clear()
    with caplog.at_level("WARNING", "curate"):
        curate.validate(chain, ["some"], seeds=2, epochs=1, name="again")
    assert "the selection 'some' was made from the selection 'most'" in caplog.text
