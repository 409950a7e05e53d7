"""Sets are removed and renamed with their files; what depends on them is said; space comes back."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import (
    add_scoring,
    insert_training_run,
    insert_validation,
    members,
    rows,
    run_curate,
    write_corpus,
)

from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    SET_TYPES,
    SET_TYPES_BY_KIND,
    EmbeddingRecord,
    ScoringRecord,
    SelectionRecord,
)
from curate.errors import CurateError, OptionError
from curate.stages.audit.stage import audit
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.probe.stage import probe
from curate.stages.remove import remove
from curate.stages.rename import rename
from curate.stages.report.stage import report
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.staleness import find_stale
from curate.stages.verify import verify


@pytest.fixture(scope="module")
def world_once(tmp_path_factory) -> Path:
    """A catalog with a set of every kind, test shards, and an export."""
    folder = tmp_path_factory.mktemp("world")
    catalog = Catalog(folder / "catalog")
    embed(catalog, write_corpus(folder / "corpus"), encoder="pixels", captions=True, workers=1)
    test_shards = write_corpus(folder / "test", 1, 12, (11, 11))
    cluster(catalog, k=3)
    probe(catalog, model="ridge", test=test_shards)
    score(catalog, ["ssl_prototypes", "random"])
    score(catalog, ["el2n"])
    select(catalog, keep=0.5, scoring="random", name="half")
    for seed in (0, 1, 2):
        select(catalog, keep=0.5, within="half", scoring="random", seed=seed, name=f"part{seed}")
    add_validation(catalog, "half")
    audit(catalog, "half", by="cluster", seeds=1)
    export(catalog, "half", folder / "out")
    return folder


def add_validation(catalog: Catalog, selection: str) -> None:
    """A validation of a selection, written by hand."""
    parents = [
        catalog.require(record_type, name).run_id
        for record_type, name in ((SelectionRecord, selection), (EmbeddingRecord, "pixels"))
    ]
    arguments = {"selections": [selection], "embedding": "pixels", "model": "mlp", "task": "labels"}
    with (
        catalog.record_run("validate", "mlp", arguments, parents=parents) as run_id,
        catalog.writing() as connection,
    ):
        setting = json.dumps({"embedding": "pixels", "within": selection})
        insert_validation(connection, "mlp", run_id=run_id, num_training_runs=2, setting=setting)
        insert_training_run(connection, "mlp", "full", None, 0, 0.9)
        insert_training_run(connection, "mlp", "pruned", selection, 0, 0.8)


@pytest.fixture
def world(world_once, tmp_path) -> Catalog:
    """A copy for each test; its corpus and its export are shared."""
    shutil.copytree(world_once / "catalog", tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def names_of(catalog: Catalog) -> set[tuple[str, str]]:
    return set(rows(catalog, "select kind, name from named_sets"))


def paths_of(catalog: Catalog) -> set[str]:
    """Every file of a catalog, but for its database."""
    return {
        str(path.relative_to(catalog.path))
        for path in catalog.path.rglob("*")
        if path.is_file() and path.name != "catalog.duckdb"
    }


def some_name(catalog: Catalog, kind: str) -> str:
    names = catalog.list_names(SET_TYPES_BY_KIND[kind])
    if not names:
        pytest.skip(f"this world has no {kind}")
    return names[0]


@pytest.mark.parametrize("kind", [record_type.kind for record_type in SET_TYPES])
def test_a_removed_set_is_gone_with_its_rows_and_files_and_the_rest_is_sound(world, kind):
    name = some_name(world, kind)
    before = names_of(world)
    assert remove(world, kind, name, force=True) == [name]
    assert names_of(world) == before - {(kind, name)}
    record_type = SET_TYPES_BY_KIND[kind]
    for table in (record_type.table, *record_type.body_tables):
        sql = f"select count(*) from {table} where {kind} = ?"
        assert rows(world, sql, name) == [(0,)]
    folders = {"embedding": "embeddings/pixels/", "probe": "probes/", "clustering": "clusterings/"}
    assert not [path for path in paths_of(world) if path.startswith(folders.get(kind, "no folder"))]
    assert not [path for path in world.path.rglob(".*") if path.name != ".lock"]
    assert verify(world) == []


def test_a_report_of_what_is_left_can_be_made(world):
    remove(world, "clustering", "kmeans", force=True)
    remove(world, "selection", "half", force=True)
    remove(world, "embedding", "pixels", force=True)
    assert Path(report(world)).is_file()


def test_a_set_that_others_were_made_from_is_removed_by_force_only(world, caplog):
    before, paths = names_of(world), paths_of(world)
    with pytest.raises(CurateError, match="--force") as refusal:
        remove(world, "scoring", "random")
    for made_from_it in ("selection 'half'", "selection 'part0'", "validation", "export"):
        assert made_from_it in str(refusal.value)
    assert (names_of(world), paths_of(world)) == (before, paths)
    remove(world, "scoring", "random", force=True)
    assert "out of date now" in caplog.text
    reasons = find_stale(world)
    assert reasons["selection", "half"] == "from 'random', which was removed"
    assert reasons["export", "out"].startswith("from the selection 'half'")
    assert members(world, "half"), "it is still there"


def test_sets_that_depend_on_each_other_alone_are_removed_together(world):
    remove(world, "selection", ["part0", "part1", "part2"])
    with pytest.raises(CurateError, match="no selection called 'part0'; there are: half"):
        remove(world, "selection", "part0")
    with pytest.raises(OptionError, match="give one of|choose one of"):
        remove(world, "selections", "half")


def test_a_column_goes_with_its_scoring(world):
    remove(world, "scoring", "el2n")
    columns = [name for name, *_ in rows(world, "describe sample_scores")]
    assert "el2n" not in columns
    assert "random" in columns


def test_an_exported_folder_stays_and_is_named(world, world_once, caplog):
    caplog.set_level("INFO")
    remove(world, "export", "out")
    assert str(world_once / "out") in caplog.text
    assert (world_once / "out").is_dir()


def test_a_removed_embedding_takes_its_test_shards_along_so_that_another_may_have_its_name(world):
    inner = Catalog(world.path / "test")
    assert names_of(inner) == {("embedding", "pixels")}
    remove(world, "embedding", "pixels", force=True)
    assert names_of(inner) == set()
    shards = [url for (url,) in rows(world, "select url from shards")]
    embed(world, shards, encoder="pixels@4", name="pixels", workers=1)
    assert rows(world, "select dim from embeddings") == [(48,)]
    assert verify(world) == verify(inner) == []


def test_samples_that_were_not_committed_are_not_taken_for_another_embeddings(world):
    pending = world.path / "embeddings" / "pixels" / "pending"
    pending.mkdir()
    vectors = sorted((world.path / "embeddings" / "pixels").glob("0*.parquet"))[0]
    shutil.copy(vectors, pending / vectors.name)
    remove(world, "embedding", "pixels", force=True)
    assert not pending.exists()


# -- shards


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("{corpus}/001.tar", [1]),
        ("{corpus}/00[12].tar", [1, 2]),
        ("{corpus}/00{{0..1}}.tar", [0, 1]),
        ("{corpus}", [0, 1, 2]),
        ("{corpus}/*", [0, 1, 2]),
        ("file://{corpus}/00?.tar", [0, 1, 2]),
    ],
)
def test_shards_are_removed_by_pattern_and_their_files_stay(world, world_once, pattern, numbers):
    urls = [url for (url,) in rows(world, "select url from shards order by url")]
    removed = remove(world, "shards", pattern.format(corpus=world_once / "corpus"), force=True)
    assert removed == [urls[number] for number in numbers]
    assert all(map(os.path.exists, urls))
    num_left = 3 - len(numbers)
    assert rows(world, "select count(*) from samples") == [(10 * num_left,)]
    folder = world.path / "embeddings" / "pixels"
    assert len(list(folder.glob("0*.parquet"))) == num_left
    assert len(list(folder.glob("captions/0*.parquet"))) == num_left
    assert verify(world) == []


def test_a_wrong_glob_does_not_stick(tmp_path):
    """Shards that never belonged, and one that could not be read, leave no trace."""
    catalog = Catalog(tmp_path / "catalog")
    right = write_corpus(tmp_path / "right")
    wrong = write_corpus(tmp_path / "wrong", 2, 3)
    Path(wrong[0]).write_bytes(b"this is no tar")
    embed(catalog, right, encoder="pixels", workers=1)
    before = catalog.embedding_fingerprint("pixels")
    embed(catalog, wrong, encoder="pixels", workers=1)
    assert rows(catalog, "select count(*) from failures") == [(1,)]
    shutil.rmtree(tmp_path / "wrong")  # they need not exist
    remove(catalog, "shards", str(tmp_path / "wrong" / "*.tar"))
    assert rows(catalog, "select count(*) from failures") == [(0,)]
    assert catalog.embedding_fingerprint("pixels") == before
    assert verify(catalog) == []


def test_sets_of_removed_shards_are_out_of_date_until_they_are_made_again(world, world_once):
    shard = str(world_once / "corpus" / "002.tar")
    with pytest.raises(CurateError, match="the clustering 'kmeans'"):
        remove(world, "shards", shard)
    assert rows(world, "select count(*) from shards") == [(3,)]
    remove(world, "shards", shard, force=True)
    assert find_stale(world)["clustering", "kmeans"] == "before the last change of 'pixels'"
    assert ("embedding", "pixels") not in find_stale(world)
    cluster(world, k=3)
    score(world, ["ssl_prototypes", "random"])
    select(world, keep=0.5, scoring="random", name="half")
    assert rows(world, "select num_samples from selections where selection = 'half'") == [(10,)]
    assert not {("clustering", "kmeans"), ("selection", "half")} & find_stale(world).keys()
    embed(world, shard, encoder="pixels", captions=True, workers=1)  # back, as a new shard
    assert rows(world, "select max(shard_id), count(*) from shards") == [(3, 3)]
    with pytest.raises(CurateError, match="the probe"):
        remove(world, "shards", shard)
    assert verify(world) == []


def test_a_pattern_without_a_shard_is_said(world, tmp_path):
    with pytest.raises(CurateError, match="no shard of the catalog matches"):
        remove(world, "shards", str(tmp_path / "*.tar"), force=True)


# -- names


def test_a_renamed_set_is_known_by_its_new_name_wherever_the_old_one_stood(world):
    new_names = {}
    for record_type in SET_TYPES:
        for name in world.list_names(record_type):
            new_names[name] = f"new_{name}"
            rename(world, record_type.kind, name, f"new_{name}")
    assert verify(world) == []
    assert find_stale(world) == {}
    assert {name for _, name in names_of(world)} == set(new_names.values())
    arguments = rows(world, "select arguments from runs where stage <> 'embed'")
    settings = rows(world, "select setting from validations")
    wheres = rows(world, "select where_sql from selections where where_sql is not null")
    for (text,) in [*arguments, *settings, *wheres]:  # 'random' is a metric's name too
        assert not re.search("[\"'](half|pixels|kmeans)[\"']", text), text
    assert rows(world, "select selection from exports") == [("new_half",)]
    assert paths_of(world) & {"clusterings/kmeans-000002.npy"} == set()


def test_the_old_name_of_an_embedding_or_probe_is_free_again(world):
    rename(world, "embedding", "pixels", "raw")
    rename(world, "probe", "ridge", "closed")
    rename(world, "clustering", "kmeans", "three")
    shards = [url for (url,) in rows(world, "select url from shards")]
    embed(world, shards[:2], encoder="pixels@4", workers=1, name="pixels")
    cluster(world, k=2, embedding="pixels")
    probe(world, model="ridge", embedding="pixels")
    assert {("clustering", "three"), ("probe", "closed")} < names_of(world)
    assert verify(world) == []
    remove(world, "clustering", ["three", "kmeans"], force=True)
    remove(world, "probe", ["closed", "ridge"], force=True)
    remove(world, "embedding", ["pixels", "raw"], force=True)
    assert not [path for path in paths_of(world) if path.endswith((".npy", ".parquet"))]


def test_a_name_that_is_taken_or_written_in_a_condition_is_refused(world):
    with pytest.raises(CurateError, match="there is a selection called 'half' already"):
        rename(world, "selection", "part0", "half")
    with pytest.raises(CurateError, match="a scoring"):
        rename(world, "clustering", "kmeans", "random")
    with pytest.raises(OptionError, match="cannot be a name"):
        rename(world, "selection", "half", "a/b")
    with pytest.raises(CurateError, match="no selection called 'x'"):
        rename(world, "selection", "x", "y")
    select(world, keep=0.5, scoring="random", where="el2n > 0", name="conditional")
    with pytest.raises(CurateError, match="selection 'conditional'"):
        rename(world, "scoring", "el2n", "hardness")
    rename(world, "scoring", "el2n", "hardness", force=True)
    assert world.find(ScoringRecord, "hardness")


# -- space, other processes, kills


def test_the_database_file_gives_back_the_space_of_removed_rows(world):
    scores = "insert into scores select 'big', i, random(), random() from range(400000) as t(i)"
    add_scoring(world, "big", {0: 0.5})
    with world.writing() as connection:
        connection.execute(scores)
        # What comes later lies behind the rows, so that no end of the file becomes free.
        connection.execute("create table last as select range as i from range(50000)")
    before, full = rows(world, "from samples order by 1"), world.database_path.stat().st_size
    with world.writing() as connection:
        connection.execute("drop table last")
    remove(world, "scoring", "big")
    assert world.database_path.stat().st_size < full - 2_000_000
    assert rows(world, "from samples order by 1") == before
    assert rows(world, "select count(*) from class_balance")[0][0] > 0
    assert verify(world) == []


def test_a_command_that_reads_a_set_keeps_it_from_being_removed(world):
    half = world.require(SelectionRecord, "half")
    with world.record_run("validate", "other", {}, parents=[half.run_id]):
        with pytest.raises(CurateError, match="`curate validate` is at work on 'other'"):
            remove(world, "selection", "half", force=True)
        with pytest.raises(CurateError, match="at work"):
            rename(world, "selection", "half", "whole")
    with (
        world.write_lock(world.embedding_folder("pixels"), "it"),
        pytest.raises(CurateError, match="process .* is working on"),
    ):
        remove(world, "embedding", "pixels", force=True)
    assert world.find(SelectionRecord, "half")


def test_a_killed_run_whose_process_id_was_given_to_another_is_not_under_way(world):
    with world.record_run("cluster", "lost", {}) as run_id:
        pass
    with world.writing() as connection:
        connection.execute(
            "update runs set status = 'running', process_start = process_start - 1 "
            "where run_id = ?",
            [run_id],
        )
    with world.record_run("cluster", "other", {}) as other_id:
        sql = "select status from runs where run_id = ?"
        assert rows(world, sql, run_id) == [("killed",)]
        assert rows(world, sql, other_id) == [("running",)]


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import chain
from curate.stages.remove import remove
from curate.stages.rename import rename
if sys.argv[2].isdecimal():
    chain.kill_at = int(sys.argv[2])
else:  # at the first point of that name
    point = chain.point
    chain.point = lambda name: name == sys.argv[2] and chain.kill_self() or point(name)
chain.add_points()
words = sys.argv[4:]
if words[0] == "rename":
    rename(sys.argv[3], *words[1:])
else:
    remove(sys.argv[3], words[1], words[2], force=True)
"""


def run_killed(catalog: Catalog, point: int | str, *words: str) -> subprocess.CompletedProcess[str]:
    faults = Path(__file__).resolve().parents[1] / "faults"
    command = [sys.executable, "-c", KILLED, str(faults), str(point), str(catalog.path), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.kills
@pytest.mark.parametrize(
    "words",
    [
        ("remove", "embedding", "pixels"),
        ("remove", "clustering", "kmeans"),
        ("remove", "probe", "ridge"),
        ("remove", "shards", "{corpus}/001.tar"),
        ("rename", "embedding", "pixels", "raw"),
        ("rename", "probe", "ridge", "closed"),
    ],
    ids=" ".join,
)
def test_killed_at_any_commit_point_a_catalog_is_sound_and_the_same_command_ends_it(
    world_once, tmp_path, words
):
    words = tuple(word.format(corpus=world_once / "corpus") for word in words)
    for point in itertools.count():
        catalog = Catalog(tmp_path / f"{point}" / "catalog")
        shutil.copytree(world_once / "catalog", catalog.path)
        if run_killed(catalog, point, *words).returncode == 0:
            break
        inner = Catalog(catalog.path / "test")
        assert verify(catalog) == verify(inner) == [], point
        again = run_killed(catalog, "never", *words)
        assert again.returncode == 0 or "no " in again.stderr.splitlines()[-1], again.stderr
        assert verify(catalog) == verify(inner) == [], point
        if words[:2] == ("remove", "embedding"):
            assert not list((catalog.path / "embeddings").rglob("*.parquet")), point
    assert point > 5


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ("before rename of a folder", ("remove", "embedding", "pixels")),
        ("before unlink", ("remove", "shards", "*/corpus/001.tar")),
        ("after link", ("rename", "embedding", "pixels", "raw")),
    ],
)
def test_killed_between_rows_and_files_a_catalog_is_sound(world, world_once, point, words):
    words = tuple(word.replace("*", str(world_once)) for word in words)
    assert run_killed(world, point, *words).returncode == -signal.SIGKILL
    assert verify(world) == []
    files_left = {path for path in paths_of(world) if path.startswith("embeddings/pixels/0")}
    assert len(files_left) == 3
    if words[0] == "rename":
        rename(world, *words[1:])
    elif words[1] == "embedding":
        assert remove(world, *words[1:], force=True) == ["pixels"]
    else:  # the shard is unknown now; its file goes with the next shard that is removed
        remove(world, "shards", str(world_once / "corpus" / "002.tar"), force=True)
    files_left = {path for path in paths_of(world) if path.startswith("embeddings/pixels/0")}
    assert len(files_left) == (1 if words[1] == "shards" else 0)
    assert verify(world) == []


def test_the_commands_print_what_they_removed_and_refuse_in_one_line(world):
    refused = run_curate("remove", "scoring", "random", "-c", world.path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "selection 'half'" in refused.stderr
    done = run_curate("remove", "selection", "part0", "part1", "-c", world.path)
    assert (done.returncode, done.stdout) == (0, "part0\npart1\n")
    done = run_curate("rename", "selection", "part2", "last", "-c", world.path)
    assert (done.returncode, done.stdout) == (0, "last\n")
