"""Two commands at once on one catalog, or on one URL for files, and what a third has left."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from conftest import rows, write_corpus

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.stages.embed import stage as embed_stage
from curate.stages.embed.stage import embed
from curate.stages.export import layout
from curate.stages.export import stage as export_stage
from curate.stages.export.stage import export
from curate.stages.select.stage import select
from curate.storage import files


@pytest.fixture
def selected(catalog) -> Catalog:
    select(catalog, keep=0.5, strategy="random", name="half")
    return catalog


def test_a_selection_replaced_while_it_is_exported_is_refused(selected, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_BATCH_MEMBERS", 1)

    def select_after_each(self: layout.SelectionMembers) -> Iterator[layout.MemberRows]:
        for batch in read_batches(self):
            yield batch
            select(selected, keep=0.7, strategy="random", name="half")

    read_batches = layout.SelectionMembers._read_batches
    monkeypatch.setattr(layout.SelectionMembers, "_read_batches", select_after_each)
    reason = "'half' was selected anew in the meantime: export it again, into a new folder"
    with pytest.raises(CurateError, match=reason):
        export(selected, "half", tmp_path / "out")
    assert rows(selected, "select * from exports") == []


def test_an_export_leaves_another_its_name(selected, tmp_path, monkeypatch):
    def export_other_first(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(export_stage, "write_shards", write)
        export(selected, "half", tmp_path / "b" / "out")
        return write(*arguments, **options)

    write = export_stage.write_shards
    monkeypatch.setattr(export_stage, "write_shards", export_other_first)
    export(selected, "half", tmp_path / "a" / "out")
    assert rows(selected, "select export, path from exports order by 1") == [
        ("out", str(tmp_path / "b" / "out")),
        ("out-2", str(tmp_path / "a" / "out")),
    ]


def test_what_a_killed_run_left_of_a_shard_that_was_mended_since_is_no_failure(
    tmp_path, monkeypatch
):
    """Killed before its commit; another embedding reads the damaged, then the mended shard."""

    def interrupt(*arguments: object, **options: object) -> None:
        if len(arguments) > 2:  # not the one for what an earlier run left
            raise KeyboardInterrupt

    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: 20 * 512 + 700])
    catalog = Catalog(tmp_path / "catalog").create()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(embed_stage, "commit_pending", interrupt)
        embed(catalog, [str(path)], encoder="pixels")
    folder = Path(catalog.embedding_folder("pixels"))
    assert [file.name for file in folder.rglob("pending/*.parquet")] == ["00000000.parquet"]
    embed(catalog, [str(path)], encoder="pixels@4")
    path.write_bytes(whole)
    embed(catalog, [str(path)], encoder="pixels@4")
    embed(catalog, [str(path)], encoder="pixels")
    assert rows(catalog, "select * from failures") == []
    assert [file.name for file in folder.rglob("*.parquet")] == ["00000001.parquet"]


def test_a_url_has_the_files_of_one_catalog(tmp_path):
    Catalog(tmp_path / "one").create("memory://files")
    fsspec.filesystem("memory").makedirs("/files/embeddings")
    Catalog(tmp_path / "one").create("memory://files")
    with pytest.raises(CurateError, match="--files memory://files: it holds other files"):
        Catalog(tmp_path / "two").create("memory://files")
    assert not (tmp_path / "two").exists()


def test_a_run_takes_nothing_from_one_that_had_its_number(tmp_path):
    """The catalog was restored from before a run that was killed, so the next has its number."""
    catalog = Catalog(tmp_path / "catalog").create("memory://others")
    same_number, other_number = (f"memory://others/work/{run_id}/left.parquet" for run_id in (1, 7))
    for url in (same_number, other_number):
        fsspec.filesystem("memory").pipe(url, b"left")
    with (
        catalog.record_run("score", "random", {}) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        assert run_id == 1
        assert files.list_files(folder) == []
    assert not files.is_file(same_number)
    assert not files.is_file(other_number)
