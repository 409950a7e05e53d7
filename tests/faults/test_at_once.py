"""Two commands at once on one catalog, or on one place for files, and what a third had left."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import rows, write_corpus

from curate import corpus, storage
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.stages import export as exporting
from curate.stages import packing
from curate.stages.embed import embed
from curate.stages.export import export
from curate.stages.select import select


@pytest.fixture
def selected(catalog) -> Catalog:
    select(catalog, keep=0.5, strategy="random", name="half")
    return catalog


def test_a_selection_made_anew_while_it_is_exported_is_refused(selected, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH", 1)

    def then_select(self: packing.Members) -> Iterator[packing.Rows]:
        for batch in batches(self):
            yield batch
            select(selected, keep=0.7, strategy="random", name="half")

    batches = packing.Members._batches
    monkeypatch.setattr(packing.Members, "_batches", then_select)
    with pytest.raises(CurateError, match="'half' was selected anew in the meantime: export it again, into a new folder"):
        export(selected, "half", tmp_path / "out")
    assert rows(selected, "select * from exports") == []


def test_an_export_leaves_another_its_name(selected, tmp_path, monkeypatch):
    def then_the_other(*arguments: object) -> object:
        monkeypatch.setattr(exporting, "_write", write)
        export(selected, "half", tmp_path / "b" / "out")
        return write(*arguments)

    write = exporting._write
    monkeypatch.setattr(exporting, "_write", then_the_other)
    export(selected, "half", tmp_path / "a" / "out")
    assert rows(selected, "select export, path from exports order by 1") == [
        ("out", str(tmp_path / "b" / "out")), ("out-2", str(tmp_path / "a" / "out"))
    ]  # fmt: skip


def test_what_was_left_of_a_shard_that_was_mended_since_is_no_failure(tmp_path, monkeypatch):
    """An embedding is killed before its commit; another one reads the damaged shard, and the mended one."""
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: 20 * 512 + 700])
    catalog = Catalog(tmp_path / "catalog")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(corpus, "commit_pending", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt()))
        embed(catalog, [str(path)], encoder="pixels")
    embed(catalog, [str(path)], encoder="pixels@4")
    path.write_bytes(whole)
    embed(catalog, [str(path)], encoder="pixels@4")
    embed(catalog, [str(path)], encoder="pixels")
    assert rows(catalog, "select * from failures") == []
    assert [file.name for file in catalog.embedding_folder("pixels").glob("*.parquet")] == ["00000001.parquet"]


def test_a_url_has_the_files_of_one_catalog(tmp_path):
    Catalog(tmp_path / "one").create("memory://files")
    storage.at("memory://files/embeddings").mkdir(parents=True)
    Catalog(tmp_path / "one").create("memory://files")
    with pytest.raises(CurateError, match="--files memory://files: files of others lie there"):
        Catalog(tmp_path / "two").create("memory://files")
    assert not (tmp_path / "two").exists()


def test_a_run_takes_nothing_from_one_that_had_its_number(tmp_path):
    """The catalog was copied back from before a run that was killed, so the next run has that one's number."""
    catalog = Catalog(tmp_path / "catalog").create("memory://others")
    left, of_none = (storage.at(f"memory://others/work/{run_id}/left.parquet") for run_id in (1, 7))
    for path in (left, of_none):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")
    with catalog.run("score", "random", {}) as run_id, catalog.exchange(run_id) as folder:
        assert run_id == 1
        assert storage.listed(folder, "*") == []
    assert not of_none.exists()
