"""What lost machines leave, what slow file systems hide, and what comes to its end after all: none of it changes a result."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import rows, same_files, write_corpus

import curate
from curate import storage
from curate.catalog import Catalog
from curate.engine import Outcome, local
from curate.workspaces import TEMPORARY

attempt = local.attempt


def twice(task: Any, item: Any) -> Outcome:
    """The outcome of a second attempt, where the first died just before what it had written got its name."""
    outcome = attempt(task, item)
    if hasattr(task, "folder"):
        written = list(task.folder.rglob("*[0-9].[pt]*"))  # Parquet and tar files
    else:
        written = list(task.out.glob("*-000000")) if hasattr(task, "out") else []
    for path in written:
        if not path.name.startswith(TEMPORARY):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, path.with_name(f"{TEMPORARY}0123456789ab-{path.name}"))
    return outcome


def unseen(folder: Path, pattern: str) -> list[Path]:
    """A list of the folder from before anything was written to it, as NFS may give it for a minute."""
    return []


@pytest.mark.parametrize(
    "patched", [(local, "attempt", twice), (storage, "listed", unseen)], ids=["lost machine", "stale list"]
)
def test_what_was_written_is_known_by_results_alone(tmp_path, monkeypatch, patched):
    shards = write_corpus(tmp_path / "corpus", 4, 20)

    def chain(name: str) -> Catalog:
        catalog = Catalog(tmp_path / name)
        curate.embed(catalog, shards, encoder="pixels", workers=1)
        curate.cluster(catalog, k=4, workers=1)
        curate.probe(catalog, count=2, epochs=2)
        curate.score(catalog, ["ssl_prototypes", "el2n"], workers=1)
        curate.select(catalog, keep=0.5, scoring="el2n", name="half")
        curate.export(catalog, "half", tmp_path / f"{name}-out", workers=1)
        return catalog

    plain = chain("plain")
    with monkeypatch.context() as patch:
        patch.setattr(*patched)
        other = chain("other")
        left = [path for path in (tmp_path / "other" / "clusterings").iterdir() if path.name.endswith(".begun.npz")]
    for path in left:  # what a stale list hides is removed by the next clustering
        path.unlink()
    same_files(tmp_path / "plain", tmp_path / "other")
    same_files(tmp_path / "plain-out", tmp_path / "other-out")
    for table in ("samples", "assignments", "probe_models", "scores", "members"):
        everything = f"select * exclude ({'seconds' if table == 'probe_models' else ''}) from {table} order by all"
        assert rows(other, everything.replace(" exclude ()", "")) == rows(plain, everything.replace(" exclude ()", ""))


def test_a_part_that_another_machine_finished_first_is_the_part(catalog, monkeypatch):
    def late(source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target)
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", late)
    curate.probe(catalog, count=2, epochs=2)
    assert len(rows(catalog, "select * from probe_models")) == 2
    assert not list(catalog.path.rglob(f"{TEMPORARY}*"))
