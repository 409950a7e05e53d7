from pathlib import Path

import pytest
from conftest import rows, run_curate, write_corpus

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.stages.plan import throughput
from curate.stages.plan.stage import StagePlan, plan


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    monkeypatch.setattr(throughput, "_SECONDS", 0.1)


def plan_by_stage(
    catalog: Path, shards: list[str], samples: int | None = None
) -> dict[str, StagePlan]:
    plans = plan(catalog, shards, encoder="pixels", keep=0.5, samples=samples)
    return {stage_plan.stage: stage_plan for stage_plan in plans}


def test_a_plan_of_shards_knows_what_a_tenfold_corpus_takes(tmp_path):
    shards = write_corpus(tmp_path / "corpus", 3, 40)
    plans = plan_by_stage(tmp_path / "catalog", shards)
    assert list(plans) == ["embed", "cluster", "score", "select", "export"]
    for stage_plan in plans.values():
        assert stage_plan.seconds > 0
        assert stage_plan.memory > 0
        assert stage_plan.disk > 0
    # The ends of little tars count too.
    assert plans["embed"].samples == pytest.approx(120, rel=0.1)
    assert plans["export"].samples == pytest.approx(60, rel=0.1)
    tenfold = plan_by_stage(tmp_path / "catalog", shards, samples=1200)
    assert tenfold["embed"].samples == 1200
    for stage in ("embed", "export"):
        bytes_per_sample = plans[stage].disk / plans[stage].samples
        assert tenfold[stage].disk / tenfold[stage].samples == pytest.approx(
            bytes_per_sample, rel=0.02
        )


def test_a_plan_is_shown_next_to_what_the_stages_took(catalog):
    plan(catalog)
    curate.cluster(catalog, k=3)
    curate.score(catalog, "ssl_prototypes")
    plans = curate.query(catalog, "plans").to_pylist()
    assert [(row["stage"], row["samples"], row["name"]) for row in plans] == [
        ("embed", 30, None),
        ("cluster", 30, "kmeans"),
        ("score", 30, "ssl_prototypes"),
        ("select", 30, None),
        ("export", 24, None),
    ]
    assert plans[1]["planned_seconds"] is not None
    assert plans[1]["seconds"] is not None
    assert rows(catalog, "select status from runs where stage = 'plan'") == [("done",)]


def test_the_command_prints_a_table(catalog):
    result = run_curate("plan", "--samples", 1_000_000_000, "-c", catalog.path)
    assert result.returncode == 0, result.stderr
    assert "1,000,000,000 samples" in result.stderr
    lines = [line for line in result.stdout.splitlines() if "1,000,000,000" in line]
    assert [line.split()[0] for line in lines] == ["embed", "cluster", "score", "select"]


def test_what_cannot_be_planned_is_an_error(tmp_path, catalog):
    with pytest.raises(CurateError, match="name the shards"):
        plan(Catalog(tmp_path / "new").create())
    with pytest.raises(CurateError, match="no images in the first samples"):
        empty = tmp_path / "empty.tar"
        empty.write_bytes(bytes(10240))
        plan(tmp_path / "other", [str(empty)], encoder="pixels")
    with pytest.raises(OptionError, match="--keep 2"):
        plan(catalog, keep=2)
