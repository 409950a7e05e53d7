"""Results do not depend on what lost machines leave, on stale listings, or on late tasks."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import rows, same_files, write_corpus

import curate
from curate.catalog.catalog import Catalog
from curate.execution import tasks
from curate.execution.types import Outcome
from curate.storage import files
from curate.storage.locks import TEMPORARY_PREFIX

run_task = tasks.run_task


def run_second_attempt(task: Any, item: Any) -> Outcome:
    """As if a first attempt had died just before it renamed what it had written."""
    outcome = run_task(task, item)
    if hasattr(task, "folder"):
        written = list(Path(task.folder).rglob("*[0-9].[pt]*"))  # Parquet and tar files
    else:
        written = list(task.out.glob("*-000000")) if hasattr(task, "out") else []
    for path in written:
        if not path.name.startswith(TEMPORARY_PREFIX):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, path.with_name(f"{TEMPORARY_PREFIX}0123456789ab-{path.name}"))
    return outcome


def list_no_files(folder: str, pattern: str = "*") -> list[str]:
    """A listing from before anything was written, as NFS may give it for a minute."""
    return []


@pytest.mark.parametrize(
    "patch",
    [(tasks, "run_task", run_second_attempt), (files, "list_files", list_no_files)],
    ids=["lost machine", "stale listing"],
)
def test_what_was_written_is_known_by_results_alone(tmp_path, monkeypatch, patch):
    shards = write_corpus(tmp_path / "corpus", 4, 20)

    def run_chain(name: str) -> Catalog:
        catalog = Catalog(tmp_path / name)
        curate.embed(catalog, shards, encoder="pixels", workers=1)
        curate.cluster(catalog, k=4, workers=1)
        curate.probe(catalog, count=2, epochs=2)
        curate.score(catalog, ["ssl_prototypes", "el2n"], workers=1)
        curate.select(catalog, keep=0.5, scoring="el2n", name="half")
        curate.export(catalog, "half", tmp_path / f"{name}-out", workers=1)
        return catalog

    plain = run_chain("plain")
    with monkeypatch.context() as context:
        context.setattr(*patch)
        other = run_chain("other")
    # What a stale listing hides is removed by the next clustering.
    for path in (tmp_path / "other" / "clusterings").glob("*.begun.npz"):
        path.unlink()
    same_files(tmp_path / "plain", tmp_path / "other")
    same_files(tmp_path / "plain-out", tmp_path / "other-out")
    for table in ("samples", "assignments", "scores", "members"):
        sql = f"select * from {table} order by all"
        assert rows(other, sql) == rows(plain, sql)
    sql = "select * exclude (seconds) from probe_models order by all"
    assert rows(other, sql) == rows(plain, sql)


def test_a_part_that_another_machine_finished_first_is_the_part(catalog, monkeypatch):
    def replace_too_late(source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target)
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", replace_too_late)
    curate.probe(catalog, count=2, epochs=2)
    assert len(rows(catalog, "select * from probe_models")) == 2
    assert not list(catalog.path.rglob(f"{TEMPORARY_PREFIX}*"))
