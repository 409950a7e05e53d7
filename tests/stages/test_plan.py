import subprocess
import sys

import pytest
from conftest import rows, write_corpus

import curate
from curate.catalog import Catalog
from curate.engine import rates
from curate.errors import CurateError
from curate.stages.plan import plan


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(rates, "_SECONDS", 0.1)


def test_a_plan_of_shards_knows_what_a_tenfold_corpus_takes(tmp_path):
    shards = write_corpus(tmp_path / "corpus", 3, 40)
    found = {row["stage"]: row for row in plan(tmp_path / "catalog", shards, encoder="pixels", keep=0.5)}
    assert list(found) == ["embed", "cluster", "score", "select", "export"]
    assert all(row["seconds"] > 0 and row["memory"] > 0 and row["disk"] > 0 for row in found.values())
    assert found["embed"]["samples"] == pytest.approx(120, rel=0.1)  # the ends of little tars count too
    assert found["export"]["samples"] == pytest.approx(60, rel=0.1)
    tenfold = {row["stage"]: row for row in plan(tmp_path / "catalog", shards, encoder="pixels", keep=0.5, samples=1200)}
    assert tenfold["embed"]["samples"] == 1200
    for stage in ("embed", "export"):  # bytes a sample
        each = [rows[stage]["disk"] / rows[stage]["samples"] for rows in (tenfold, found)]
        assert each[0] == pytest.approx(each[1], rel=0.02)


def test_what_came_of_a_plan_stands_beside_it(catalog):
    plan(catalog)
    curate.cluster(catalog, k=3)
    curate.score(catalog, "ssl_prototypes")
    found = curate.query(catalog, "plans").to_pylist()
    assert [(row["stage"], row["samples"], row["name"]) for row in found] == [
        ("embed", 30, None), ("cluster", 30, "kmeans"), ("score", 30, "ssl_prototypes"), ("select", 30, None),
        ("export", 24, None),
    ]  # fmt: skip
    assert found[1]["planned_seconds"] is not None
    assert found[1]["seconds"] is not None
    assert rows(catalog, "select status from runs where stage = 'plan'") == [("done",)]


def test_the_command_prints_a_table(catalog):
    run = subprocess.run(
        [sys.executable, "-m", "curate", "plan", "--samples", "1000000000", "-c", str(catalog.path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "1,000,000,000 samples" in run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines() if "1,000,000,000" in line] == [
        "embed",
        "cluster",
        "score",
        "select",
    ]


def test_what_cannot_be_planned_is_said(tmp_path, catalog):
    with pytest.raises(CurateError, match="name the shards"):
        plan(Catalog(tmp_path / "new").create())
    with pytest.raises(CurateError, match="no images in the first samples"):
        empty = tmp_path / "empty.tar"
        empty.write_bytes(bytes(10240))
        plan(tmp_path / "other", [str(empty)], encoder="pixels")
    with pytest.raises(CurateError, match="--keep 2"):
        plan(catalog, keep=2)
