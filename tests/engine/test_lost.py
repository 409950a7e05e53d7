"""A machine that dies while it writes leaves its temporary file, whole at worst; another machine does its work again."""

import shutil
from typing import Any

from conftest import rows, same_files, write_corpus

import curate
from curate.atomic import TEMPORARY
from curate.catalog import Catalog
from curate.engine import Outcome, local

attempt = local.attempt


def twice(task: Any, item: Any) -> Outcome:
    """The outcome of a second attempt, where the first died just before the last file got its name."""
    outcome = attempt(task, item)
    written = task.folder.rglob("*[0-9].[pt]*") if hasattr(task, "folder") else ()  # Parquet and tar files
    for path in list(written):
        if not path.name.startswith(TEMPORARY):
            shutil.copy(path, path.with_name(f"{TEMPORARY}0123456789ab-{path.name}"))
    return outcome


def test_what_a_lost_machine_was_writing_is_no_part_of_anything(tmp_path, monkeypatch):
    shards = write_corpus(tmp_path / "corpus", 4, 20)

    def chain(name: str) -> Catalog:
        catalog = Catalog(tmp_path / name)
        curate.embed(catalog, shards, encoder="pixels", workers=1)
        curate.cluster(catalog, k=4, workers=1)
        curate.score(catalog, ["ssl_prototypes", "random"], workers=1)
        curate.select(catalog, keep=0.5, scoring="random", name="half")
        curate.export(catalog, "half", tmp_path / f"{name}-out", workers=1)
        return catalog

    plain = chain("plain")
    monkeypatch.setattr(local, "attempt", twice)
    lost = chain("lost")
    same_files(tmp_path / "plain", tmp_path / "lost")
    same_files(tmp_path / "plain-out", tmp_path / "lost-out")
    for table in ("samples", "assignments", "scores", "members"):
        assert rows(lost, f"select * from {table} order by all") == rows(plain, f"select * from {table} order by all")
