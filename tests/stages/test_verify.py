"""`curate verify` finds planted faults, each by its name, and passes a sound catalog."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import rows, write_corpus
from typer.testing import CliRunner

from curate.catalog import Catalog
from curate.cli import app
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.export import export
from curate.stages.probe import probe
from curate.stages.score import score
from curate.stages.select import select
from curate.stages.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A catalog with a set of every kind and two exports; its shards lie beside it."""
    folder = tmp_path_factory.mktemp("sound")
    catalog = Catalog(folder / "catalog")
    embed(catalog, write_corpus(folder / "corpus"), encoder="pixels", workers=1)
    cluster(catalog, k=3)
    probe(catalog, model=["ridge"])
    score(catalog, ["ssl_prototypes", "random"])
    select(catalog, keep=0.5, scoring="random", name="half")  # whatever k-means does, the same samples
    export(catalog, "half", folder / "mirror")
    export(catalog, "half", folder / "repacked", samples_per_shard=6)
    return folder


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def sql(text: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        with Catalog(folder / "catalog").writing() as connection:
            connection.execute(text)

    return plant


def manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / "mirror" / "manifest.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return plant


def drop_a_member(folder: Path) -> None:
    """A whole sample cut out of an exported shard, and the manifest made to agree."""
    from curate import fingerprints

    path = folder / "mirror" / "000.tar"
    data = path.read_bytes()
    with path.open("rb") as stream:
        from curate.shards import samples
        from curate.tar import TarReader

        first = next(samples(TarReader(stream)))
    path.write_bytes(data[first.length :])
    shard = {"num_bytes": len(data) - first.length, "fingerprint": fingerprints.of_file(path)}
    manifest(lambda found: found["shards"][0].update(shard))(folder)


def other_ids(folder: Path) -> None:
    """A vector file of an older catalog, without a fingerprint, in which two samples changed places."""
    from curate import vectors

    path = vector_file(folder)
    part = vectors.read(path)
    vectors.write(path, part.sample_ids[::-1], part.vectors.astype(np.float16))
    sql("update embedded_shards set vectors = null")(folder)


def vector_file(folder: Path) -> Path:
    return folder / "catalog" / "embeddings" / "pixels" / "00000000.parquet"


def only(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))))


FAULTS = {
    "a byte of vectors": (lambda folder: flip(vector_file(folder)), "bytes are not those that were written"),
    "vectors gone": (lambda folder: vector_file(folder).unlink(), "00000000.parquet: it is gone"),
    "vectors of other samples": (other_ids, "rows are not those of the shard's samples"),
    "a byte of centroids": (lambda folder: flip(only(folder, "catalog/clusterings/*.npy")), "bytes are not those"),
    "a byte of a probe": (lambda folder: flip(only(folder, "catalog/probes/*/*/*/*.parquet")), "bytes are not those"),
    "a part of a probe": (lambda folder: shutil.rmtree(only(folder, "catalog/probes/*/*/*-000000")), "summary cannot be read"),
    "a score lost": (sql("delete from scores where rowid = (select min(rowid) from scores)"), "29 rows, but it says 30"),
    "a score lost to NULL": (sql("update scores set score = null where sample_id = 3"), "1 scores are NULL, but it says 0"),
    "a member twice": (
        sql("update members set sample_id = (select max(sample_id) from members)"), "14 samples come twice",
    ),
    "a sample lost": (sql("delete from samples where sample_id = 4"), "10 embedded, but 9 samples are known"),
    "a sample twice": (sql("insert into samples select * from samples where sample_id = 5"), "it is there 2 times"),
    "a wrong count": (sql("update embedded_shards set num_failed = 1 where shard_id = 1"), "10 samples, but 10 embedded and 1"),
    "a failure forgotten": (
        sql("update embedded_shards set num_embedded = 9, num_failed = 1 where shard_id = 1"), "1 failed, but 0 are recorded",
    ),
    "a distance changed": (sql("update assignments set distance = distance + 1 where sample_id = 2"), "do not add up"),
    "a wrong share": (sql("update selections set keep = 0.7"), "15 samples of 30 are not the share 0.7"),
    "a run lost": (sql("delete from runs where stage = 'score'"), "the run that made it is not in the catalog"),
    "a byte of the database": (lambda folder: flip(folder / "catalog" / "catalog.duckdb", 0.3), "it is damaged"),
    "a shard gone": (lambda folder: (folder / "corpus" / "001.tar").unlink(), "001.tar: it cannot be read"),
    "a shard cut": (
        lambda folder: (folder / "corpus" / "001.tar").write_bytes((folder / "corpus" / "001.tar").read_bytes()[:-512]),
        "001.tar: it has changed since it was embedded",
    ),
    "a byte of a shard": (lambda folder: flip(folder / "corpus" / "001.tar"), "001.tar: it has changed since it was embedded"),
    "a byte of an export": (lambda folder: flip(folder / "mirror" / "000.tar"), "mirror/000.tar: its bytes are not those"),
    "an exported shard gone": (lambda folder: (folder / "repacked" / "000001.tar").unlink(), "000001.tar: it is gone"),
    "a member cut out of an export": (drop_a_member, "samples of the index are missing"),
    "a manifest's count": (manifest(lambda found: found.update(num_samples=14)), "15 samples, but the manifest says 14"),
    "a manifest that names files elsewhere": (
        manifest(lambda found: found["shards"][0].update(path="../catalog/catalog.duckdb")), "outside of the export",
    ),
    "an index gone": (lambda folder: (folder / "mirror" / "index.parquet").unlink(), "manifest or index cannot be read"),
}  # fmt: skip


def test_a_sound_catalog_passes(sound):
    assert verify(sound / "catalog") == []
    assert verify(sound / "catalog", sources=True) == []
    result = CliRunner().invoke(app, ["verify", "-c", str(sound / "catalog"), "--sources"])
    assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(sound, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    with Catalog(folder / "catalog").writing() as connection:  # the copy's paths
        for table, column in (("shards", "url"), ("exports", "path")):
            connection.execute(f"update {table} set {column} = replace({column}, ?, ?)", [str(sound), str(folder)])
    assert verify(folder / "catalog", sources=True) == []
    plant, problem = FAULTS[name]
    plant(folder)
    result = CliRunner().invoke(app, ["verify", "--sources", "-c", str(folder / "catalog")])
    assert result.exit_code == 1
    assert problem in result.stdout


def test_an_export_is_verified_without_its_catalog(sound, tmp_path):
    shutil.copytree(sound / "mirror", tmp_path / "given")
    assert verify(tmp_path / "none", [tmp_path / "given"]) == []
    flip(tmp_path / "given" / "002.tar")
    (fault, *_) = verify(tmp_path / "none", [tmp_path / "given"])
    assert fault.what.endswith("002.tar")


def test_an_export_is_compared_with_its_shards(sound, tmp_path, monkeypatch):
    """Where the manifest agrees with a file whose bytes are not the shards' own, only the shards can tell."""
    from curate import fingerprints

    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    path = folder / "mirror" / "000.tar"
    flip(path, 0.05)  # within the first image
    manifest(lambda found: found["shards"][0].update(fingerprint=fingerprints.of_file(path)))(folder)
    assert verify(sound / "catalog", [folder / "mirror"]) == []
    (fault,) = verify(sound / "catalog", [folder / "mirror"], sources=True)
    assert "not byte for byte those of the shards" in fault.problem


def test_index_parquet_of_the_fixture_is_what_the_faults_assume(sound):
    assert pq.read_metadata(sound / "mirror" / "index.parquet").num_rows == 15
    assert rows(Catalog(sound / "catalog"), "select count(*) from exports") == [(2,)]
