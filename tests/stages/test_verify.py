"""`curate verify` finds every kind of damage, and passes a sound catalog."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import rows, write_corpus
from typer.testing import CliRunner, Result

from curate.catalog.catalog import Catalog
from curate.cli.app import app
from curate.formats.sample_ids import first_sample_id
from curate.formats.samples import iterate_samples
from curate.formats.tar import TarReader
from curate.formats.vectors import read_vectors, write_vectors
from curate.stages import verify as verify_module
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.export.manifest import KeySequence
from curate.stages.export.stage import export
from curate.stages.probe.stage import probe
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.verify import verify
from curate.storage.checksums import file_checksum


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder with a catalog that has a set of every kind, its corpus, and two exports."""
    folder = tmp_path_factory.mktemp("sound")
    catalog = Catalog(folder / "catalog")
    embed(catalog, write_corpus(folder / "corpus"), encoder="pixels", captions=True, workers=1)
    cluster(catalog, k=3)
    probe(catalog, model=["ridge"])
    score(catalog, ["ssl_prototypes", "random"])
    # By random scores, so that the samples are the same whatever k-means does.
    select(catalog, keep=0.5, scoring="random", name="half")
    export(catalog, "half", folder / "mirror")
    export(catalog, "half", folder / "repacked", samples_per_shard=6)
    return folder


def test_exports_of_shards_that_moved_are_compared_where_these_are_now(catalog, shards, tmp_path):
    select(catalog, keep=0.5, strategy="random", name="half")
    export(catalog, "half", tmp_path / "mirror")
    export(catalog, "half", tmp_path / "repacked", samples_per_shard=6)
    (tmp_path / "corpus").rename(tmp_path / "moved")
    issues = list(map(str, verify(catalog, check_sources=True)))
    assert len(issues) == len(set(issues))
    assert all("embed it where it is now" in issue for issue in issues if "000.tar: it" in issue)
    embed(catalog, str(tmp_path / "moved"), encoder="pixels")
    assert verify(catalog, check_sources=True) == []
    assert verify(catalog, [tmp_path / "mirror"], check_sources=True) == []
    (tmp_path / "moved" / "000.tar").unlink()
    issues = [issue.subject for issue in verify(catalog, check_sources=True)]
    assert issues.count(str(tmp_path / "moved" / "000.tar")) == 1


# What damages a folder such as `sound`.
Damage = Callable[[Path], None]


def flip_bit(path: Path, position: float = 0.5) -> None:
    """Change one bit at a relative position in a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)


def flip_bit_of(pattern: str, position: float = 0.5) -> Damage:
    """Change one bit of the first file that matches."""
    return lambda folder: flip_bit(sorted(folder.glob(pattern))[0], position)


def remove(pattern: str) -> Damage:
    """Remove the first file or folder that matches."""

    def damage(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def execute(sql: str) -> Damage:
    def damage(folder: Path) -> None:
        with Catalog(folder / "catalog").writing() as connection:
            connection.execute(sql)

    return damage


def edit_manifest(edit: Callable[[dict], None]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "mirror" / ".curate" / "manifest.json"
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def remove_exported_sample(folder: Path) -> None:
    """A whole sample cut out of an exported shard, with a manifest that agrees."""
    path = folder / "mirror" / "000.tar"
    data = path.read_bytes()
    with path.open("rb") as stream:
        first = next(iterate_samples(TarReader(stream)))
    path.write_bytes(data[first.length :])
    shard = {"num_bytes": len(data) - first.length, "checksum": file_checksum(str(path))}
    edit_manifest(lambda manifest: manifest["shards"][0].update(shard))(folder)


def reverse_vectors(folder: Path) -> None:
    """A vector file of an older catalog, without a checksum, with its ids in reverse order."""
    location = str(folder / VECTOR_FILE)
    shard = read_vectors(location)
    write_vectors(location, shard.sample_ids[::-1], shard.vectors.astype(np.float16))
    execute("update embedded_shards set vectors_checksum = null")(folder)


def truncate_shard(folder: Path) -> None:
    path = folder / "corpus" / "001.tar"
    path.write_bytes(path.read_bytes()[:-512])


def drop_caption_vector(folder: Path) -> None:
    """A file that lacks the vector of one caption, in a catalog that agrees with its checksum."""
    location = str(folder / CAPTION_FILE)
    shard = read_vectors(location)
    checksum = write_vectors(location, shard.sample_ids[1:], shard.vectors[1:].astype(np.float16))
    sql = f"update embedded_shards set captions_checksum = '{checksum}' where shard_id = 0"
    execute(sql)(folder)


VECTOR_FILE = "catalog/embeddings/pixels/00000000.parquet"
CAPTION_FILE = "catalog/embeddings/pixels/captions/00000000.parquet"
FAULTS: dict[str, tuple[Damage, str]] = {
    "a byte of vectors": (flip_bit_of(VECTOR_FILE), "bytes are not those that were written"),
    "vectors gone": (remove(VECTOR_FILE), "00000000.parquet: it is gone"),
    "vectors of other samples": (reverse_vectors, "rows are not those of the shard's samples"),
    "a byte of caption vectors": (flip_bit_of(CAPTION_FILE), "bytes are not those"),
    "caption vectors gone": (remove(CAPTION_FILE), "captions/00000000.parquet: it is gone"),
    "a caption without a vector": (
        drop_caption_vector,
        "captions/00000000.parquet: its rows are not those of the shard's samples",
    ),
    "a byte of centroids": (flip_bit_of("catalog/clusterings/*.npy"), "bytes are not those"),
    "a byte of a probe": (flip_bit_of("catalog/probes/*/*/*/*.parquet"), "bytes are not those"),
    "a part of a probe": (remove("catalog/probes/*/*/*-000000"), "summary cannot be read"),
    "a score lost": (
        execute("delete from scores where rowid = (select min(rowid) from scores)"),
        "29 rows, but it says 30",
    ),
    "a score lost to NULL": (
        execute("update scores set score = null where sample_id = 3"),
        "1 scores are NULL, but it says 0",
    ),
    "a member twice": (
        execute("update members set sample_id = (select max(sample_id) from members)"),
        "14 samples come twice",
    ),
    "a sample lost": (
        execute("delete from samples where sample_id = 4"),
        "10 embedded, but 9 are in the table of samples",
    ),
    "a sample twice": (
        execute("insert into samples select * from samples where sample_id = 5"),
        "it is there 2 times",
    ),
    "a wrong count": (
        execute("update embedded_shards set num_failed = 1 where shard_id = 1"),
        "10 samples, but 10 embedded and 1",
    ),
    "a failure lost": (
        execute("update embedded_shards set num_embedded = 9, num_failed = 1 where shard_id = 1"),
        "1 failed, but 0 are recorded",
    ),
    "a distance changed": (
        execute("update assignments set distance = distance + 1 where sample_id = 2"),
        "do not add up",
    ),
    "a wrong share": (
        execute("update selections set keep = 0.7"),
        "15 samples of 30 are not the share 0.7",
    ),
    "a run lost": (
        execute("delete from runs where stage = 'score'"),
        "the run that made it is not in the catalog",
    ),
    "a byte of the database": (flip_bit_of("catalog/catalog.duckdb", 0.3), "it is damaged"),
    "a shard gone": (remove("corpus/001.tar"), "001.tar: it cannot be read"),
    "a shard cut": (truncate_shard, "001.tar: it has changed since it was embedded"),
    "a byte of a shard": (
        flip_bit_of("corpus/001.tar"),
        "001.tar: it has changed since it was embedded",
    ),
    "a byte of an export": (
        flip_bit_of("mirror/000.tar"),
        "mirror/000.tar: its bytes are not those",
    ),
    "an exported shard gone": (remove("repacked/000001.tar"), "000001.tar: it is gone"),
    "a sample cut out of an export": (
        remove_exported_sample,
        "samples of the index are missing",
    ),
    "a manifest's count": (
        edit_manifest(lambda manifest: manifest.update(num_samples=14)),
        "15 samples, but the manifest says 14",
    ),
    "a manifest that names files elsewhere": (
        edit_manifest(
            lambda manifest: manifest["shards"][0].update(path="../catalog/catalog.duckdb")
        ),
        "outside of the export",
    ),
    "an index gone": (remove("mirror/.curate/index.parquet"), "manifest or index cannot be read"),
}


def verify_by_command_line(folder: Path, *options: str) -> Result:
    words = ["--quiet", "verify", "-c", str(folder / "catalog"), *options]
    return CliRunner().invoke(app, words)


def test_a_sound_catalog_passes(sound):
    assert verify(sound / "catalog") == []
    assert verify(sound / "catalog", check_sources=True) == []
    result = verify_by_command_line(sound, "--check-sources")
    assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.parametrize("batch_rows", [1, 1 << 20])
def test_vectors_are_compared_with_their_own_shard_in_whatever_batch(
    sound, tmp_path, monkeypatch, batch_rows
):
    monkeypatch.setattr(verify_module, "_BATCH_ROWS", batch_rows)
    assert verify(sound / "catalog") == []
    shutil.copytree(sound / "catalog", tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    (shard_id,) = rows(catalog, "select max(shard_id) from embedded_shards")[0]
    execute(f"delete from samples where sample_id = {first_sample_id(shard_id)}")(tmp_path)
    problems = [issue.problem for issue in verify(catalog) if issue.subject.endswith(".parquet")]
    assert problems[0] == "its rows are not those of the shard's samples"


@pytest.mark.parametrize("name", FAULTS)
def test_damage_is_an_issue_that_says_what_is_wrong(sound, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    with Catalog(folder / "catalog").writing() as connection:  # the copy's paths
        for table, column in (("shards", "url"), ("exports", "path")):
            connection.execute(
                f"update {table} set {column} = replace({column}, ?, ?)", [str(sound), str(folder)]
            )
    assert verify(folder / "catalog", check_sources=True) == []
    damage, problem = FAULTS[name]
    damage(folder)
    result = verify_by_command_line(folder, "--check-sources")
    assert result.exit_code == 1
    assert problem in result.stdout


def test_an_export_is_verified_without_its_catalog(sound, tmp_path):
    export_folder = tmp_path / "export"
    shutil.copytree(sound / "mirror", export_folder)
    assert verify(tmp_path / "none", [export_folder]) == []
    flip_bit(export_folder / "002.tar")
    issue, *_ = verify(tmp_path / "none", [export_folder])
    assert issue.subject.endswith("002.tar")


def test_an_export_is_compared_with_its_shards(sound, tmp_path):
    """Where the manifest agrees with a file of other bytes, only the shards show the difference."""
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    path = folder / "mirror" / "000.tar"
    flip_bit(path, 0.05)  # within the first image
    checksum = file_checksum(str(path))
    edit_manifest(lambda manifest: manifest["shards"][0].update(checksum=checksum))(folder)
    assert verify(sound / "catalog", [folder / "mirror"]) == []
    (issue,) = verify(sound / "catalog", [folder / "mirror"], check_sources=True)
    assert "not byte for byte those of the shards" in issue.problem


def test_index_parquet_of_the_fixture_is_what_the_faults_assume(sound):
    assert pq.read_metadata(sound / "mirror" / ".curate" / "index.parquet").num_rows == 15
    assert rows(Catalog(sound / "catalog"), "select count(*) from exports") == [(2,)]


def test_sequences_of_keys_are_equal_where_all_keys_are_in_the_same_order():
    def sequence(*keys: str) -> KeySequence:
        keys_seen = KeySequence()
        for key in keys:
            keys_seen.append(key)
        return keys_seen

    assert sequence("a", "b\udcff") == sequence("a", "b\udcff")
    for other in (("b", "a"), ("ab",), ("a", "b", ""), ("", "ab"), ()):
        assert sequence("a", "b") != sequence(*other)
