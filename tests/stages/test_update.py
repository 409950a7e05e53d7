"""A corpus grows and shrinks: an update is as a chain from scratch under the same centroids."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scoring, load_scores, members, rows, same_files, write_corpus
from kills import run_and_kill

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, SelectionRecord
from curate.errors import CurateError
from curate.execution.types import Resources
from curate.formats.sample_ids import first_sample_id, shard_of
from curate.stages.cluster.stage import centroids_filename, cluster
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.query import open_query
from curate.stages.remove import remove
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.staleness import find_stale
from curate.stages.update import exports, stage
from curate.stages.update.clusterings import extend_clustering
from curate.stages.update.drift import ClusterMoments, measure_drift
from curate.stages.update.stage import update
from curate.stages.verify import verify
from curate.storage.files import link_file

NUM_SHARDS, NUM_FIRST = 8, 3
SCORINGS = ["ssl_prototypes", "supervised_prototypes", "random"]
SELECTIONS = {
    "hard": {"keep": 0.5},
    "wide": {"keep": 0.5, "where": "random > 0.2", "skip_hardest": 0.1, "seed": 3},
    "inner": {"keep": 0.5, "within": "hard", "scope": "cluster"},
    "repeated": {"keep": 0.5, "repeats": 3, "seed": 2},
    "weighted": {"keep": 0.4, "strategy": "random", "balance_by": "cluster", "weights": True},
}


def embed_pixels(catalog: Catalog, urls: list[str]) -> None:
    embed(catalog, urls, encoder="pixels", workers=1)


def choose(catalog: Catalog) -> None:
    """The scorings, and the selections from them."""
    score(catalog, SCORINGS)
    for name, options in SELECTIONS.items():
        select(catalog, name=name, **options)


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """Catalogs of a corpus: `first` of its first shards, `all` of all of them, both embedded."""
    folder = tmp_path_factory.mktemp("grown")
    urls = write_corpus(folder / "corpus", NUM_SHARDS)
    first = Catalog(folder / "first")
    embed_pixels(first, urls[:NUM_FIRST])
    cluster(first, k=4)
    choose(first)
    embed_pixels(Catalog(folder / "all"), urls)
    return folder


@pytest.fixture
def first(grown, tmp_path) -> Catalog:
    """A catalog of the first shards, with all that is made from them."""
    shutil.copytree(grown / "first", tmp_path / "first")
    return Catalog(tmp_path / "first")


def corpus(grown: Path) -> list[str]:
    return sorted(map(str, (grown / "corpus").iterdir()))


def cluster_by(catalog: Catalog, frozen: Catalog, name: str = "kmeans") -> None:
    """From scratch but for the centroids, which are those of another catalog."""
    record = frozen.require(ClusteringRecord, name)
    run_ids = rows(catalog, "select run_id from embeddings")[0]
    with catalog.record_run("cluster", name, {}, parents=run_ids) as run_id:
        pass
    record = replace(
        record, centroids_file=centroids_filename(name, run_id), num_samples=0, run_id=run_id
    )
    source = frozen.centroids_file(frozen.require(ClusteringRecord, name))
    link_file(source, catalog.centroids_file(record))
    with catalog.writing() as connection:
        sets.replace_set(connection, record)
    extend_clustering(catalog, record, Resources(1))


def test_four_weekly_additions_are_as_a_chain_from_scratch_under_the_same_centroids(
    grown, first, tmp_path
):
    urls = corpus(grown)
    export(first, "hard", tmp_path / "grown-export")
    for week in (urls[3:4], urls[4:6], urls[6:7], urls[7:8]):
        embed_pixels(first, week)
        update(first)
    shutil.copytree(grown / "all", tmp_path / "all")
    scratch = Catalog(tmp_path / "all")
    cluster_by(scratch, first)
    choose(scratch)
    assert load_scores(first, "ssl_prototypes") == load_scores(scratch, "ssl_prototypes")
    assert load_scores(first, "random") == load_scores(scratch, "random")
    # Class means are those of the first week, so its scores stay.
    for name in SELECTIONS:
        assert members(first, name) == members(scratch, name), name
        records = [catalog.require(SelectionRecord, name) for catalog in (first, scratch)]
        assert records[0].fingerprint == records[1].fingerprint
        sql = "select sample_id, weight, repeats from members where selection = ? order by all"
        assert rows(first, sql, name) == rows(scratch, sql, name)
    ((least, mean),) = rows(
        first, "select min(weight), avg(weight) from members where selection = 'weighted'"
    )
    assert 0 < least <= mean == pytest.approx(1)
    for query in ("changes", "drift"):
        with open_query(first, query) as (connection, sql):
            assert connection.execute(sql).fetchall(), query
    export(scratch, "hard", tmp_path / "export")
    same_files(tmp_path / "grown-export", tmp_path / "export")
    assert verify(first) == []
    assert not find_stale(first)


def test_lists_of_a_selection_are_written_again_where_they_are(grown, first, tmp_path, caplog):
    formats = {"keys.txt": "keys", "keys.parquet": "keys", "all.csv": "csv", "i.parquet": "index"}
    for name, list_format in formats.items():
        export(first, "hard", tmp_path / name, format=list_format)
    export(first, "hard", tmp_path / "rest.txt", format="keys", complement=True)
    export(first, "hard", tmp_path / "gone.txt", format="keys")
    (tmp_path / "gone.txt").unlink()
    embed_pixels(first, corpus(grown)[3:4])
    changed = update(first)
    names = [*formats, "rest.txt"]
    assert {f"list {tmp_path / name}" for name in names} <= set(changed)
    assert "gone.txt of 'hard' is gone" in caplog.text
    for name, list_format in formats.items():
        export(first, "hard", tmp_path / "new" / name, format=list_format)
        assert (tmp_path / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name
    export(first, "hard", tmp_path / "new" / "rest.txt", format="keys", complement=True)
    assert (tmp_path / "rest.txt").read_text() == (tmp_path / "new" / "rest.txt").read_text()
    assert update(first) == []


def test_the_same_commands_have_nothing_to_do_after_an_update(grown, first, caplog):
    embed_pixels(first, corpus(grown)[3:5])
    update(first)
    (last_run,) = rows(first, "select max(run_id) from runs")
    score(first, SCORINGS)
    for name, options in SELECTIONS.items():
        select(first, name=name, **options)
    assert update(first) == []
    assert rows(first, "select name from runs where run_id > ?", *last_run) == []


def hold_in_child(hold) -> tuple[int, int]:
    """Hold what a function gives, a context, in a fork: its process, and a pipe that ends it."""
    reader, writer = os.pipe()
    end_reader, end_writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with hold():
                os.write(writer, b"x")
                os.read(end_reader, 1)
                os.write(writer, b"y")
        finally:
            os._exit(0)
    assert os.read(reader, 1) == b"x"
    return child, end_writer


def test_an_update_waits_while_another_command_writes(grown, first):
    embed_pixels(first, corpus(grown)[3:4])
    child, end = hold_in_child(first.writing)
    threading.Timer(0.5, lambda: os.write(end, b"x")).start()
    assert "selection hard" in update(first)
    assert os.waitpid(child, os.WNOHANG)[0] == child, "it ended before the update did"


def test_a_second_update_is_refused(grown, first):
    embed_pixels(first, corpus(grown)[3:4])
    folder = first.path / "locks" / "update"
    child, end = hold_in_child(lambda: first.write_lock(folder, "an update"))
    with pytest.raises(CurateError, match=f"process {child} is working on an update of this"):
        update(first)
    os.write(end, b"x")
    os.waitpid(child, 0)
    assert update(first)


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=pytest.mark.kills if number else ()) for number in range(20)],
)
def test_after_a_kill_at_a_random_place_the_next_update_finishes(grown, first, tmp_path, number):
    embed_pixels(first, corpus(grown)[3:5])
    whole = Catalog(shutil.copytree(first.path, tmp_path / "whole"))
    for catalog, folder in ((first, tmp_path), (whole, tmp_path / "expected")):
        export(catalog, "hard", folder / "shards")
        export(catalog, "hard", folder / "keys.txt", format="keys")
    total = run_and_kill(lambda: update(whole), None)
    place = np.random.default_rng(number).integers(1, total)
    run_and_kill(lambda: update(first), int(place))
    update(first)
    assert update(first) == []
    for name in SELECTIONS:
        assert members(first, name) == members(whole, name)
    assert load_scores(first, "ssl_prototypes") == load_scores(whole, "ssl_prototypes")
    same_files(tmp_path / "shards", tmp_path / "expected" / "shards")
    expected_keys = (tmp_path / "expected" / "keys.txt").read_text()
    assert (tmp_path / "keys.txt").read_text() == expected_keys
    assert verify(first) == []
    assert not find_stale(first)


def test_samples_of_removed_and_replaced_shards_leave(grown, first, tmp_path, caplog):
    urls = corpus(grown)
    copy = shutil.copy(urls[3], tmp_path / "other.tar")
    embed_pixels(first, [str(copy)])
    update(first)
    remove(first, "shards", [urls[0], str(copy)], force=True)
    shutil.copy(urls[4], copy)
    embed_pixels(first, [str(copy)])
    caplog.clear()
    update(first)
    assert "1 shard was replaced" in caplog.text
    existing = {shard_id for (shard_id,) in rows(first, "select shard_id from shards")}
    assert existing == {1, 2, 4}
    for table in ("assignments", "scores", "members"):
        shards = rows(first, f"select distinct sample_id >> 24 from {table}")
        assert {shard_id for (shard_id,) in shards} == existing, table
    assert verify(first) == []


def test_who_came_and_who_left_is_stored_with_the_reason(grown, first):
    before = members(first, "hard")
    embed_pixels(first, corpus(grown)[3:5])
    remove(first, "shards", corpus(grown)[:1], force=True)
    update(first)
    after = members(first, "hard")
    changes = rows(
        first,
        "select sample_id, has_come, reason from membership_changes where selection = 'hard'",
    )
    came = {sample_id for sample_id, has_come, _ in changes if has_come}
    left = {sample_id for sample_id, has_come, _ in changes if not has_come}
    assert came == set(after) - set(before)
    assert left == set(before) - set(after)
    for sample_id, has_come, reason in changes:
        assert (reason == "new") == (has_come and shard_of(sample_id) >= 3)
        assert (reason == "shard") == (not has_come and shard_of(sample_id) == 0)
        assert reason in ("new", "shard", "threshold", "quota")


def test_sets_within_a_selection_follow_it(grown, first, tmp_path):
    cluster(first, k=3, within="hard")
    score(first, "ssl_prototypes", within="hard", name="inner-scores")
    select(first, keep=0.5, within="hard", scoring="inner-scores", name="inmost")
    embed_pixels(first, corpus(grown)[3:6])
    update(first)
    assigned = rows(
        first, "select sample_id from assignments where clustering = 'kmeans-in-hard' order by 1"
    )
    assert [sample_id for (sample_id,) in assigned] == members(first, "hard")
    scored = rows(
        first,
        "select sample_id from scores where scoring = 'inner-scores' and score is not null "
        "order by 1",
    )
    assert scored == assigned
    assert set(members(first, "inmost")) <= set(members(first, "hard"))
    assert verify(first) == []
    assert update(first) == []


def test_vectors_that_were_made_anew_are_refused(grown, first):
    remove(first, "embedding", "pixels", force=True)
    embed_pixels(first, corpus(grown)[: NUM_FIRST + 1])
    with pytest.raises(CurateError, match="was made anew, perhaps by other weights"):
        update(first)


def test_a_scoring_that_cannot_grow_is_named_and_what_is_from_it_stays(grown, first, caplog):
    sample_ids = [sample_id for (sample_id,) in rows(first, "select sample_id from samples")]
    add_scoring(first, "theirs", {sample_id: float(sample_id) for sample_id in sample_ids})
    select(first, keep=0.5, scoring="theirs", name="last")
    select(first, keep=0.5, scoring="theirs", unscored="drop", name="dropped")
    before = members(first, "last")
    embed_pixels(first, corpus(grown)[3:4])
    changed = update(first)
    assert "the scoring 'theirs' stays as it is, its scores were computed elsewhere" in caplog.text
    assert "the selection 'last' stays as it is, it is from the scoring 'theirs'" in caplog.text
    assert members(first, "last") == before
    assert "selection dropped" in changed  # its own rule says what becomes of them


@pytest.mark.parametrize("kind", ["scoring", "selection", "export"])
def test_an_update_that_ended_early_is_continued(grown, first, tmp_path, monkeypatch, kind):
    urls = corpus(grown)
    export(first, "hard", tmp_path / "out")
    shutil.copytree(first.path, tmp_path / "other")
    embed_pixels(first, urls[3:5])

    def fail(*arguments: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(stage._UPDATES, kind, fail)
        update(first)
    update(first)
    other = Catalog(tmp_path / "other")
    with other.writing() as connection:
        connection.execute("delete from exports")
    embed_pixels(other, urls[3:5])
    update(other)
    for name in SELECTIONS:
        assert members(first, name) == members(other, name)
    assert not find_stale(first)
    assert verify(first) == []


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*.tar")}


@pytest.mark.parametrize("step", ["write_shards", "commit_export", "write_manifest"])
def test_an_export_is_written_only_where_members_changed_also_after_a_kill(
    grown, first, tmp_path, monkeypatch, step
):
    urls, out = corpus(grown), tmp_path / "out"
    add_scoring(first, "by_hand", {first_sample_id(1) + n: 1.0 for n in range(5)})
    embed_pixels(first, urls[3:4])
    select(first, keep=0.3, scoring="by_hand", balance_by="none", name="chosen")
    export(first, "chosen", out)
    before, old_ids = inodes(out), members(first, "chosen")
    with first.writing() as connection:  # one of shard 2 leaves, for one of shard 0
        gone = next(one for one in old_ids if shard_of(one) == 2)
        new = next(n for n in range(10) if n not in old_ids)
        connection.execute("update members set sample_id = ? where sample_id = ?", [new, gone])
        connection.execute(
            "update selections set fingerprint = 'other', run_id = run_id + 1000 "
            "where selection = 'chosen'"
        )

    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exports, step, fail)
        update(first)
    update(first)
    changed = {name for name, inode in inodes(out).items() if before[name] != inode}
    assert changed == {"000.tar", "002.tar"}
    with first.writing() as connection:
        connection.execute("delete from exports")
    export(first, "chosen", tmp_path / "new")
    same_files(out, tmp_path / "new")


def test_shards_that_get_another_path_are_moved_not_written(grown, first, tmp_path):
    urls, out = corpus(grown), tmp_path / "out"
    select(first, keep=1.0, strategy="random", name="everything")
    export(first, "everything", out)
    before = inodes(out)
    week = tmp_path / "week"
    week.mkdir()
    embed_pixels(first, [str(shutil.copy(urls[3], week / "new.tar"))])
    update(first)
    after = inodes(out)
    assert {name: after[name] for name in before} == before
    paths = {str(path.relative_to(out)) for path in out.rglob("*.tar")}
    assert len(paths) == NUM_FIRST + 1
    assert all(os.sep in path for path in paths)
    assert verify(first) == []


def moments_of(generator: np.random.Generator, k: int, n: int) -> ClusterMoments:
    squares = generator.chisquare(8, (k, n))
    return ClusterMoments(
        np.full(k, n), squares.mean(axis=1), squares.var(axis=1, ddof=1), squares.max(axis=1)
    )


def test_drift_is_found_where_new_samples_are_farther_and_only_there():
    generator = np.random.default_rng(0)
    fitted = moments_of(generator, 20, 500)
    clusters = generator.integers(0, 20, 4000)
    squares = generator.chisquare(8, 4000)
    same = measure_drift(fitted, clusters, squares)
    assert not same.has_drifted
    assert abs(same.excess) < 2 * same.excess_interval
    farther = measure_drift(fitted, clusters, np.where(clusters == 3, 3, 1) * squares)
    assert farther.has_drifted
    assert [cluster for cluster, _, _ in farther.worst_clusters] == [3]
    far = measure_drift(fitted, clusters, np.where(np.arange(4000) < 200, 1000, squares))
    assert far.far_share == pytest.approx(0.05, abs=0.01)
    assert far.has_drifted


def test_new_centroids_are_fitted_where_the_drift_says_so_and_the_difference_is_counted(
    grown, first, monkeypatch
):
    embed_pixels(first, corpus(grown)[3:6])
    update(first, compare=True)
    record = first.require(ClusteringRecord, "kmeans")
    assert "scratch" not in " ".join(first.list_names(SelectionRecord))
    compared = rows(first, "select selection, num_different from scratch_comparisons order by 1")
    assert [name for name, _ in compared] == ["hard", "inner", "repeated", "wide"]
    expected = set(members(first, "hard"))
    update(first, refit=True)  # no drift: nothing is done
    assert first.require(ClusteringRecord, "kmeans") == record
    with first.writing() as connection:
        connection.execute("update clustering_updates set has_drifted = true")
    update(first, refit=True)
    assert first.require(ClusteringRecord, "kmeans").centroids_file != record.centroids_file
    different = expected - set(members(first, "hard"))
    assert len(different) == dict(compared)["hard"]
