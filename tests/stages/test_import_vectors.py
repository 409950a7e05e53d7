"""Vectors that other tools computed, in the layouts of clip-retrieval and of DataComp."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import load_scores, load_vectors, png, rows, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError

NUM_SHARDS, PER_SHARD = 3, 10


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A corpus with a key for each sample, embedded by pixels in `catalog`."""
    folder = tmp_path_factory.mktemp("world")
    for shard in range(NUM_SHARDS):
        samples = []
        for position in range(PER_SHARD):
            number = PER_SHARD * shard + position
            fields = json.dumps({"uid": f"{number:032x}", "similarity": number / 10})
            label = str(position % 2).encode()
            members = {"png": png(number), "cls": label, "json": fields.encode()}
            samples.append((f"{number:09d}", members))
        write_shard(folder / "shards" / f"{shard:05d}.tar", samples)
    curate.embed(folder / "catalog", str(folder / "shards"), encoder="pixels", workers=1)
    return folder


def vectors_of(world: Path) -> np.ndarray:
    """The vectors of the corpus by our own encoder, float16 [30, dim]."""
    return load_vectors(Catalog(world / "catalog")).astype(np.float16)


def write_clip_retrieval(folder: Path, vectors: np.ndarray, keys: list[str], parts: int = 2) -> str:
    """The layout of clip-retrieval: rows in no order of the corpus, in several parts."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    order = np.random.default_rng(0).permutation(len(keys))
    for part, chosen in enumerate(np.array_split(order, parts)):
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", vectors[chosen])
        table = pa.table({"image_path": [keys[row] for row in chosen]})
        pq.write_table(table, folder / "metadata" / f"metadata_{part}.parquet")
    return str(folder)


KEYS = [f"{number:09d}" for number in range(NUM_SHARDS * PER_SHARD)]
UIDS = [f"{number:032x}" for number in range(NUM_SHARDS * PER_SHARD)]


def test_imported_vectors_give_the_same_scores_as_embedding_anew(world, tmp_path):
    folder = write_clip_retrieval(tmp_path / "clip", vectors_of(world), KEYS)
    imported = Catalog(tmp_path / "imported")
    name = curate.import_vectors(imported, folder, str(world / "shards"), workers=1)
    assert name == "clip"
    np.testing.assert_array_equal(load_vectors(imported, "clip"), vectors_of(world))
    anew = Catalog(tmp_path / "anew")
    shutil.copytree(world / "catalog", anew.path)
    for catalog in (imported, anew):
        curate.cluster(catalog, k=3)
        curate.score(catalog, ["ssl_prototypes", "supervised_prototypes"])
    for scoring in ("ssl_prototypes", "supervised_prototypes"):
        np.testing.assert_array_equal(load_scores(imported, scoring), load_scores(anew, scoring))
    columns = "sample_id, key, label, caption, byte_offset, num_bytes, width, height"
    sql = f"select {columns} from samples order by sample_id"
    assert rows(imported, sql) == rows(anew, sql)
    sql = "select * exclude (etag) from shards order by shard_id"
    assert rows(imported, sql) == rows(anew, sql)
    assert rows(imported, "select encoder, dim from embeddings") == [("imported", 192)]
    assert curate.verify(imported) == []


def test_the_layout_of_datacomp_goes_by_uid(world, tmp_path):
    vectors = vectors_of(world).astype(np.float32)
    for part, chosen in enumerate(np.array_split(np.arange(len(KEYS)), 2)):
        np.savez(tmp_path / f"{part:08x}.npz", b32_img=vectors[chosen], b32_txt=-vectors[chosen])
        pq.write_table(
            pa.table({"uid": [UIDS[row] for row in chosen]}), tmp_path / f"{part:08x}.parquet"
        )
    catalog, shards = Catalog(tmp_path / "catalog"), str(world / "shards")
    with pytest.raises(OptionError, match="choose one with --array: b32_img, b32_txt"):
        curate.import_vectors(catalog, tmp_path, shards)
    curate.import_vectors(
        catalog, tmp_path, shards, array="b32_img", name="b32", columns="similarity", workers=1
    )
    np.testing.assert_array_equal(load_vectors(catalog, "b32"), vectors_of(world))
    assert rows(catalog, "select max(similarity) from sample_scores") == [(2.9,)]


def test_npy_beside_parquet_and_keys_of_ones_own(world, tmp_path):
    np.save(tmp_path / "all.npy", vectors_of(world).astype(np.float64))
    pq.write_table(pa.table({"n": KEYS, "key": UIDS}), tmp_path / "all.parquet")
    catalog = Catalog(tmp_path / "catalog")
    curate.import_vectors(catalog, tmp_path, str(world / "shards"), key="n", name="a", workers=1)
    np.testing.assert_array_equal(load_vectors(catalog, "a"), vectors_of(world))


def test_samples_without_a_good_vector_fail_and_are_counted(world, tmp_path, caplog):
    vectors, keys = vectors_of(world).astype(np.float32), [*KEYS]
    vectors[3, 0], vectors[4, 5], keys[5], keys[6], keys[7] = np.nan, 1e9, "x", "y", KEYS[8]
    folder = write_clip_retrieval(tmp_path / "clip", vectors, keys)
    catalog, shards = Catalog(tmp_path / "catalog"), str(world / "shards")
    with pytest.raises(CurateError, match="3 samples have no vector.*2 vectors are not finite"):
        curate.import_vectors(catalog, folder, shards, strict=True, workers=1)
    assert not catalog.path.exists()
    curate.import_vectors(catalog, folder, shards, workers=1)
    assert rows(catalog, "select key, error from failures order by 1") == [
        (KEYS[3], "its vector is not finite in half precision"),
        (KEYS[4], "its vector is not finite in half precision"),
        (KEYS[5], "no vector has its key"),
        (KEYS[6], "no vector has its key"),
        (KEYS[7], "no vector has its key"),
        (KEYS[8], "2 vectors have its key"),
    ]
    assert "2 vectors have no sample, such as x, y" in caplog.text.replace("y, x", "x, y")
    assert rows(catalog, "select sum(num_embedded), sum(num_failed) from embedded_shards") == [
        (24, 6)
    ]
    assert curate.verify(catalog) == []


def test_files_that_do_not_fit_are_refused_before_anything_is_written(world, tmp_path):
    vectors, shards = vectors_of(world), str(world / "shards")

    def refuse(match: str, **options: object) -> None:
        with pytest.raises(CurateError, match=match):
            curate.import_vectors(tmp_path / "catalog", folder, shards, workers=1, **options)
        assert not (tmp_path / "catalog").exists()

    folder = tmp_path / "none"
    refuse("no folder at")
    folder.mkdir()
    refuse("there is neither img_emb/img_emb_0.npy")
    shutil.rmtree(folder)
    write_clip_retrieval(folder, vectors, KEYS)
    refuse("has no column 'nokey': name it with --key: image_path", key="nokey")
    refuse("--array goes with .npz", array="b32_img")
    refuse("keys such as 0000.*samples", sample_key="json:similarity")
    second = folder / "img_emb" / "img_emb_1.npy"
    np.save(second, vectors[:3])
    refuse("has 3 rows, but .* 15 keys: they do not belong together")
    np.save(second, vectors[:15, :7])
    refuse("has vectors of 7 float16, .* of 192 float16: an embedding has one kind")
    np.save(second, vectors[:15].astype(np.float32))
    refuse("has vectors of 192 float32, .* of 192 float16")
    np.save(second, vectors[:15].view(np.int16))
    refuse("holds int16 of shape")
    np.save(second, np.array([{}] * 15), allow_pickle=True)
    refuse("cannot be read")
    second.write_bytes(second.read_bytes()[:100])
    refuse("cannot be read")
    second.write_bytes(b"")
    refuse("cannot be read: No data left in file; copy it again")
    with second.open("wb") as file:
        np.savez(file, vectors)
    refuse("holds several arrays, as .npz files do: name it so")
    second.unlink()
    refuse("metadata/metadata_1.parquet: every file of vectors needs")
    shutil.rmtree(folder)
    folder.mkdir()
    pq.write_table(pa.table({"uid": UIDS}), folder / "0.parquet")
    np.savez_compressed(folder / "0.npz", b32_img=vectors)
    whole = (folder / "0.npz").read_bytes()
    for cut in (b"", whole[:100], whole[:-100]):
        (folder / "0.npz").write_bytes(cut)
        refuse("0.npz' is no .npz file")
    with (folder / "0.npz").open("wb") as file:
        np.save(file, vectors)
    refuse("0.npz' is no .npz file")
    # The list of what is in it is whole, the vectors are not.
    (folder / "0.npz").write_bytes(whole[:200] + bytes(100) + whole[300:])
    refuse("0.npz' cannot be read: .*; copy it again")


def test_an_import_goes_on_where_it_stopped_and_takes_new_shards(world, tmp_path, monkeypatch):
    from curate.stages.import_vectors import stage

    folder = write_clip_retrieval(tmp_path / "clip", vectors_of(world), KEYS)
    catalog, shards = Catalog(tmp_path / "catalog"), str(world / "shards")
    first = str(world / "shards" / "00000.tar")
    curate.import_vectors(catalog, folder, first, workers=1)
    written: list[int] = []
    write_shard_vectors = stage._write_shard

    def stop_at_the_second(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(1)
        return write_shard_vectors(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_write_shard", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            curate.import_vectors(catalog, folder, shards, workers=1)
    curate.import_vectors(catalog, folder, shards, workers=1)
    np.testing.assert_array_equal(load_vectors(catalog, "clip"), vectors_of(world))
    before = rows(catalog, "select max(run_id) from runs")
    curate.import_vectors(catalog, folder, shards, workers=1)
    assert rows(catalog, "select max(run_id) from runs") == before
    assert curate.verify(catalog) == []


def test_an_imported_embedding_is_no_other(world, tmp_path):
    folder = write_clip_retrieval(tmp_path / "clip", vectors_of(world), KEYS)
    catalog, shards = Catalog(tmp_path / "catalog"), str(world / "shards")
    shutil.copytree(world / "catalog", catalog.path)
    with pytest.raises(CurateError, match="'pixels' was made by curate embed"):
        curate.import_vectors(catalog, folder, shards, name="pixels")
    curate.import_vectors(catalog, folder, shards, workers=1)
    with pytest.raises(CurateError, match="'clip' was made with encoder imported, not pixels"):
        curate.embed(catalog, shards, encoder="pixels", name="clip")
    with pytest.raises(CurateError, match="vectors of 'clip' were imported, and other shards"):
        curate.probe(catalog, embedding="clip", model="ridge", test=shards)
    with pytest.raises(CurateError, match="by the encoder imported, these vectors 192 by pixels"):
        curate.import_vectors(catalog, folder, shards, encoder="pixels")
    curate.import_vectors(catalog, folder, shards, encoder="pixels", name="known", workers=1)
    assert len(catalog.vector_files("known")) == NUM_SHARDS
