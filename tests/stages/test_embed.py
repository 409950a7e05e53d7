import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import png, rows, run_curate, write_corpus, write_shard

from curate.catalog.catalog import Catalog
from curate.catalog.records import ShardRecord
from curate.encoders import pixels as pixels_encoder
from curate.errors import CurateError, OptionError
from curate.formats.vectors import read_vectors, write_vectors
from curate.stages.cluster.stage import cluster
from curate.stages.embed import registration, worker
from curate.stages.embed import stage as embed_stage
from curate.stages.embed.stage import default_name, embed, num_failures
from curate.stages.export.stage import export
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.stages.verify import verify
from curate.storage.files import filename

COUNTS = (
    "select num_samples, num_embedded, num_failed from shards join embedded_shards using (shard_id)"
)


def file_hashes(catalog: Catalog, embedding: str = "pixels") -> dict[str, str]:
    """What an embedding's folder holds."""
    folder = Path(catalog.embedding_folder(embedding))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_conservation(catalog: Catalog) -> None:
    """For every shard, samples = embedded + failed; and every embedded sample is in the catalog."""
    counts = rows(catalog, COUNTS)
    assert all(
        num_samples == num_embedded + num_failed for num_samples, num_embedded, num_failed in counts
    )
    ((num_rows,),) = rows(catalog, "select count(*) from samples")
    assert num_rows == sum(num_embedded for _, num_embedded, _ in counts)


def write_extra_shard(shards: list[str], name: str) -> str:
    """One more shard in the folder of the others, with one sample."""
    path = Path(shards[0]).with_name(name)
    return str(write_shard(path, [("new", {"png": png(9), "cls": b"1"})]))


def test_every_sample_gets_a_row_and_a_vector(catalog, shards):
    assert rows(catalog, "select shard_id, url, num_samples, complete from shards order by 1") == [
        (number, url, 10, True) for number, url in enumerate(shards)
    ]
    samples = rows(
        catalog, "select sample_id, key, label, caption, width, height from samples order by 1"
    )
    assert len(samples) == 30
    assert samples[11] == ((1 << 24) | 1, "0001", "0", "picture 1", 12, 10)
    shard = read_vectors(catalog.vector_file("pixels", 1))
    assert shard.sample_ids.tolist() == [(1 << 24) | position for position in range(10)]
    assert shard.vectors.shape == (10, 192)
    assert rows(catalog, "select embedding, encoder, dim from embeddings") == [
        ("pixels", "pixels", 192)
    ]
    check_conservation(catalog)


def test_byte_ranges_lead_back_to_the_sample(catalog):
    sql = (
        "select url, byte_offset, samples.num_bytes, key "
        "from samples join shards using (shard_id) where sample_id = ?"
    )
    ((url, offset, length, key),) = rows(catalog, sql, (2 << 24) | 7)
    data = Path(url).read_bytes()[offset : offset + length]
    assert data[:8] == f"{key}.png"[:8].encode()
    assert png(2007) in data


def test_duckdb_reads_the_vectors_as_lists(catalog):
    sql = "select count(*), any_value(typeof(vector)) from embedding('pixels')"
    with catalog.reading(sandboxed=True) as connection:
        assert connection.execute(sql).fetchall() == [(30, "FLOAT[]")]


def test_the_same_command_again_does_nothing(catalog, shards, caplog):
    before = file_hashes(catalog)
    with caplog.at_level("INFO", "curate"):
        embed(catalog, shards[::-1], encoder="pixels")
    assert "nothing to do" in caplog.text
    assert file_hashes(catalog) == before
    assert rows(catalog, "select count(*) from runs") == [(1,)]


def test_new_shards_are_added_and_embedded_ones_left_alone(catalog, shards):
    before = file_hashes(catalog)
    extra = write_extra_shard(shards, "000a.tar")
    embed(catalog, [*shards, extra], encoder="pixels")
    after = file_hashes(catalog)
    assert {name: after[name] for name in before} == before
    assert rows(catalog, "select shard_id from shards where url = ?", extra) == [(3,)]
    check_conservation(catalog)


def test_two_workers_give_the_same_files_as_one(tmp_path, shards):
    by_one, by_two = Catalog(tmp_path / "one"), Catalog(tmp_path / "two")
    embed(by_one, shards, encoder="pixels", workers=1, batch_size=7)
    embed(by_two, shards, encoder="pixels", workers=2)
    assert file_hashes(by_one) == file_hashes(by_two)
    sql = "select * from samples order by sample_id"
    assert rows(by_one, sql) == rows(by_two, sql)


def test_a_profile_says_where_the_time_went(tmp_path, shards, caplog):
    with caplog.at_level("INFO", "curate"):
        embed(tmp_path / "catalog", shards, encoder="pixels", workers=1, profile=True)
    assert re.search(r"profile: \d+\.\d s of 1 workers: .*decode \d+%", caplog.text)
    ((text,),) = rows(Catalog(tmp_path / "catalog"), "select timing from runs")
    assert {"read", "decode", "encode", "write"} <= set(json.loads(text))


def test_a_second_embedding_shares_the_corpus(catalog, shards):
    embed(catalog, shards, encoder="pixels@4", workers=1)
    assert rows(catalog, "select count(*) from samples") == [(30,)]
    assert read_vectors(catalog.vector_file("pixels@4", 0)).vectors.shape == (10, 48)


def test_broken_samples_are_recorded_and_the_rest_is_kept(tmp_path):
    url = write_shard(
        tmp_path / "a.tar",
        [
            ("good", {"png": png(1), "cls": b"3"}),
            ("torn", {"png": png(2, (90, 90))[:-400], "cls": b"3"}),
            ("none", {"cls": b"3"}),
            ("mark", {"png": png(4), "cls": b"\xff\xfd"}),
            ("bare", {"png": png(5)}),
        ],
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    assert rows(catalog, "select key, label from samples order by sample_id") == [
        ("good", "3"),
        ("bare", None),
    ]
    assert rows(catalog, "select key, member, stage from failures order by sample_id") == [
        ("torn", "png", "decode"),
        ("none", None, "member"),
        ("mark", "png", "label"),
    ]
    assert rows(catalog, COUNTS) == [(5, 2, 3)]
    assert num_failures(catalog, "pixels") == 3
    check_conservation(catalog)


def test_a_truncated_shard_keeps_what_is_whole_and_is_read_again_when_mended(tmp_path):
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: 20 * 512 + 700])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(path)], encoder="pixels")
    ((num_samples, num_embedded, num_failed),) = rows(catalog, COUNTS)
    assert 0 < num_embedded < 9
    assert (num_samples, num_failed) == (num_embedded + 1, 1)
    assert "cut short" in rows(catalog, "select error from failures where sample_id is null")[0][0]
    path.write_bytes(whole)
    embed(catalog, [str(path)], encoder="pixels")
    assert rows(catalog, "select num_samples, complete from shards") == [(10, True)]
    assert rows(catalog, "select count(*) from samples") == [(10,)]
    assert num_failures(catalog, "pixels") == 0


def test_a_file_that_is_no_tar_does_not_stop_the_others(tmp_path, shards):
    Path(shards[1]).write_bytes(b"not a tar at all" * 100)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, shards, encoder="pixels", workers=1)
    assert rows(catalog, "select shard_id, num_samples from shards order by 1") == [
        (0, 10),
        (1, None),
        (2, 10),
    ]
    assert rows(catalog, "select shard_id, stage from failures") == [(1, "shard")]
    write_corpus(tmp_path / "corpus")
    embed(catalog, shards, encoder="pixels", workers=1)
    assert rows(catalog, "select count(*) from samples") == [(30,)]
    assert num_failures(catalog, "pixels") == 0


def test_a_changed_shard_is_an_error_and_a_touched_one_is_not(catalog, shards):
    os.utime(shards[0])
    embed(catalog, shards, encoder="pixels")
    data = bytearray(Path(shards[0]).read_bytes())
    data[600] ^= 1
    Path(shards[0]).write_bytes(bytes(data))
    with pytest.raises(CurateError, match="has changed since it was embedded"):
        embed(catalog, shards, encoder="pixels")


def test_shards_of_an_older_catalog_are_recognized_by_their_sha256(
    catalog, shards, tmp_path, caplog
):
    with catalog.writing() as connection:
        for url in shards:
            sha256 = hashlib.sha256(Path(url).read_bytes()).hexdigest()
            connection.execute(
                "update shards set checksum = ?, etag = 'touched' where url = ?", [sha256, url]
            )
    with caplog.at_level("INFO", "curate"):
        embed(catalog, shards, encoder="pixels")
    assert "nothing to do" in caplog.text
    embed(catalog, shards, encoder="pixels@4", name="again")
    sql = "select count(*), bool_and(complete), max(length(checksum)) from shards"
    assert rows(catalog, sql) == [(3, True, 64)]
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    embed(catalog, [str(tmp_path / "elsewhere")], encoder="pixels")
    assert rows(catalog, "select count(*), bool_and(contains(url, 'elsewhere')) from shards") == [
        (3, True)
    ]


def test_a_moved_corpus_is_recognized_by_its_bytes(catalog, shards, tmp_path):
    before = file_hashes(catalog)
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    embed(catalog, [str(tmp_path / "elsewhere")], encoder="pixels")
    assert file_hashes(catalog) == before
    assert [url for (url,) in rows(catalog, "select url from shards order by 1")] == [
        str(tmp_path / "elsewhere" / Path(url).name) for url in shards
    ]


def test_labels_come_from_a_json_field(tmp_path):
    url = write_shard(
        tmp_path / "a.tar",
        [
            ("a", {"png": png(1), "json": b'{"kind": "dress", "n": 3}'}),
            ("b", {"png": png(2), "json": b'{"n": 4}'}),
            ("c", {"png": png(3), "json": b"{broken"}),
        ],
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels", label="json:kind")
    assert rows(catalog, "select key, label from samples order by 1") == [
        ("a", "dress"),
        ("b", None),
    ]
    assert rows(catalog, "select key, stage from failures") == [("c", "label")]


def test_a_name_is_not_shared_by_two_encoders(catalog, shards):
    with pytest.raises(
        CurateError, match="was made with encoder pixels, not pixels@4: choose another --name"
    ):
        embed(catalog, shards, encoder="pixels@4", name="pixels")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"encoder": "nosuch"}, "no encoder called 'nosuch'; there are: .*pixels"),
        ({"encoder": "pixels", "label": "json"}, "no label source"),
        ({"encoder": "pixels", "name": "../up"}, "cannot be a name"),
        ({"encoder": "pixels", "device": "tpu"}, "--device tpu: choose one of auto, cpu, cuda"),
    ],
)
def test_wrong_options_name_the_remedy(tmp_path, shards, options, reason):
    with pytest.raises(OptionError, match=reason):
        embed(tmp_path / "catalog", shards, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"encoder": "torchvision:resnet50"}, "--checkpoint"),
        ({"encoder": "timm:nosuch", "checkpoint": "nofile.pt"}, "no checkpoint at"),
    ],
)
def test_missing_weights_name_the_remedy(tmp_path, shards, options, reason):
    with pytest.raises(CurateError, match=reason):
        embed(tmp_path / "catalog", shards, **options)


def test_a_file_that_was_no_tar_is_a_shard_like_any_other_once_mended(tmp_path):
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    whole = path.read_bytes()
    path.write_bytes(b"not a tar" * 100)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(path)], encoder="pixels")
    path.write_bytes(whole)
    for _ in range(2):
        embed(catalog, [str(path)], encoder="pixels")
    assert rows(catalog, "select num_bytes, num_samples from shards") == [(len(whole), 10)]
    export(catalog, select(catalog, keep=0.5, strategy="random"), tmp_path / "out")


def test_a_mended_shard_has_new_samples_so_that_no_old_selection_means_them(tmp_path):
    path = Path(write_corpus(tmp_path / "corpus", 1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: 20 * 512 + 700])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(path)], encoder="pixels")
    name = select(catalog, keep=1.0, strategy="random")
    path.write_bytes(whole)
    embed(catalog, [str(path)], encoder="pixels")
    assert rows(catalog, "select min(sample_id) >> 24 from samples") == [(1,)]
    with pytest.raises(
        CurateError,
        match="members of 'random-1' were in shards that have been mended since: select them anew",
    ):
        export(catalog, name, tmp_path / "out")


def exchange_names(left: str, right: str) -> None:
    Path(left).rename(f"{left}-")
    Path(right).rename(left)
    Path(f"{left}-").rename(right)


@pytest.mark.parametrize("given", [[0, 1], [0], [1]])
def test_shards_that_exchanged_their_names_are_known_by_their_checksums(catalog, shards, given):
    sql = "select shard_id, checksum from shards order by 1"
    before = rows(catalog, sql)
    exchange_names(shards[0], shards[1])
    embed(catalog, [shards[number] for number in given], encoder="pixels", workers=1)
    assert rows(catalog, sql) == before
    urls = [url for (url,) in rows(catalog, "select url from shards order by shard_id")]
    assert urls == [shards[1], shards[0], shards[2]]
    assert verify(catalog, check_sources=True) == []


def test_names_that_moved_on_by_one_are_followed_and_a_new_shard_takes_the_first(
    catalog, shards, tmp_path
):
    (new,) = write_corpus(tmp_path / "more", 1, 7)
    for number in (2, 1, 0):
        Path(shards[number]).rename(str(Path(shards[0]).with_name(f"{number + 1:03d}.tar")))
    Path(new).rename(shards[0])
    embed(catalog, str(Path(shards[0]).parent), encoder="pixels", workers=1)
    names = rows(catalog, "select shard_id, right(url, 7), num_samples from shards order by 1")
    assert names == [(0, "001.tar", 10), (1, "002.tar", 10), (2, "003.tar", 10), (3, "000.tar", 7)]
    assert verify(catalog, check_sources=True) == []


def test_a_shard_over_which_another_was_copied_has_changed(catalog, shards):
    shutil.copy(shards[1], shards[0])
    before = rows(catalog, "from shards order by 1")
    with pytest.raises(CurateError, match="000.tar' has changed since it was embedded"):
        embed(catalog, shards, encoder="pixels", workers=1)
    assert rows(catalog, "from shards order by 1") == before


def test_moved_shards_of_one_name_and_size_are_distinguished(tmp_path):
    folders = ("train", "val", "test")
    for number, folder in enumerate(folders):
        samples = [(f"{position}", {"png": png(100 * number + position)}) for position in range(5)]
        write_shard(tmp_path / "corpus" / folder / "000.tar", samples)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(tmp_path / "corpus" / folder) for folder in folders], encoder="pixels")
    sql = "select split(url, '/')[-2], checksum from shards where contains(url, ?)"
    before = dict(rows(catalog, sql, "/corpus/"))
    (tmp_path / "corpus").rename(tmp_path / "moved")
    embed(catalog, [str(tmp_path / "moved" / folder) for folder in folders], encoder="pixels")
    assert len(before) == 3
    assert dict(rows(catalog, sql, "/moved/")) == before
    (tmp_path / "moved/val/000.tar").rename(tmp_path / "moved/val/renamed.tar")
    embed(catalog, [str(tmp_path / "moved/val")], encoder="pixels")
    assert rows(catalog, "select count(*), count(distinct checksum) from shards") == [(3, 3)]
    assert rows(catalog, "select count(*) from samples") == [(15,)]


def test_two_encoders_at_once_register_each_shard_once(catalog, shards, monkeypatch):
    """The other process registers a new shard after ours has listed the catalog's."""
    extra = write_extra_shard(shards, "more.tar")
    list_shards = registration._list_shards

    def list_then_lose_the_race(catalog: Catalog) -> dict[str, ShardRecord]:
        listed = list_shards(catalog)
        monkeypatch.setattr(registration, "_list_shards", list_shards)
        registration._insert_new(catalog, {extra: registration.stat_shard(extra)})
        return listed

    monkeypatch.setattr(registration, "_list_shards", list_then_lose_the_race)
    embed(catalog, [*shards, extra], encoder="pixels@4", workers=1)
    assert rows(catalog, "select count(*), count(distinct url) from shards") == [(4, 4)]


def test_a_shard_replaced_in_secret_is_not_mixed_into_the_corpus(catalog, shards):
    embed(catalog, shards, encoder="pixels")  # the fixture wrote them again: records their times
    path = Path(shards[0])
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"picture 3", b"pixture 3"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    embed(catalog, shards, encoder="pixels@4", workers=1)
    assert rows(catalog, "select shard_id, error from failures where embedding = 'pixels@4'") == [
        (0, "its bytes are not those that another embedding read")
    ]
    assert not rows(catalog, "select * from samples where caption like 'pix%'")
    assert not Path(catalog.vector_file("pixels@4", 0)).exists()


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("json", b"[" * 200_000),
        ("json", rb'{"k": "\ud800"}'),
        ("json", b"\xff"),
        ("png", b"\x00\x00\x00\x1cftypavif" + bytes(50)),
    ],
)
def test_a_poisonous_sample_fails_alone(tmp_path, extension, data):
    good = {"png": png(1), "json": b'{"k": "a"}'}
    bad = {**good, extension: data}
    url = write_shard(tmp_path / "a.tar", [("first", good), ("bad", bad), ("last", good)])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels", label="json:k")
    keys = rows(catalog, "select key from samples order by sample_id")
    assert keys == [("first",), ("last",)]
    assert rows(catalog, "select key from failures") == [("bad",)]


def test_a_folder_called_like_a_partition_changes_no_column(tmp_path):
    url = write_shard(
        tmp_path / "a.tar",
        [("a", {"png": png(1), "cls": b"dog"}), ("b", {"png": png(2), "cls": b"cat"})],
    )
    catalog = Catalog(tmp_path / "label=x" / "sample_id=3" / "distance=0.5" / "score=7")
    embed(catalog, [str(url)], encoder="pixels", name="key=7")
    cluster(catalog, k=1)
    score(catalog, "random")
    assert rows(catalog, "select sample_id, key, label from samples order by 1") == [
        (0, "a", "dog"),
        (1, "b", "cat"),
    ]
    assert rows(catalog, "select count(*) from assignments where distance = 0.5") == [(0,)]
    assert rows(catalog, "select max(score) < 1 from scores") == [(True,)]


def test_a_path_that_the_database_would_cut_at_its_question_mark_is_refused(tmp_path, shards):
    with pytest.raises(CurateError, match="choose a path without"):
        embed(tmp_path / "cat?" / "catalog", shards, encoder="pixels")


def test_the_runs_of_killed_processes_are_called_killed(catalog):
    with catalog.writing() as connection:
        connection.execute("update runs set status = 'running', process = ?", [2**22 + 1])
    score(catalog, "random")
    assert rows(catalog, "select stage, status from runs order by run_id") == [
        ("embed", "killed"),
        ("score", "done"),
    ]


def test_labels_are_the_corpus_and_all_embeddings_share_them(catalog, shards):
    with pytest.raises(
        CurateError,
        match=r"labels of this catalog come from cls \(embedding 'pixels'\): give --label cls",
    ):
        embed(catalog, shards, encoder="pixels@4", label="json:kind")
    with pytest.raises(CurateError, match="--label cls"):
        embed(catalog, shards, encoder="pixels", label="json:kind")


def test_lost_vectors_are_named_and_made_again(catalog, shards):
    before = file_hashes(catalog)
    lost, damaged = (Path(catalog.vector_file("pixels", shard_id)) for shard_id in (1, 2))
    lost.unlink()
    with pytest.raises(CurateError, match="1.parquet' is gone; the same `curate embed` again"):
        cluster(catalog, k=2)
    embed(catalog, shards, encoder="pixels")
    damaged.write_bytes(b"PAR1, but no more")
    with pytest.raises(CurateError, match="2.parquet' is damaged: remove it"):
        cluster(catalog, k=2)
    damaged.unlink()
    embed(catalog, shards, encoder="pixels")
    assert file_hashes(catalog) == before
    check_conservation(catalog)


def test_a_group_that_fails_late_keeps_the_shards_that_were_finished(tmp_path, shards, monkeypatch):
    def write_to_full_disk(location: str, *columns: np.ndarray) -> str:
        if filename(location) == "00000002.parquet":
            raise OSError(28, "No space left on device")
        return write_vectors(location, *columns)

    monkeypatch.setattr(worker, "write_vectors", write_to_full_disk)
    monkeypatch.setattr(embed_stage, "_group_shards", lambda tasks, *_: [tuple(tasks)])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, shards, encoder="pixels", workers=1)
    assert rows(catalog, "select shard_id from failures") == [(2,)]
    monkeypatch.setattr(worker, "write_vectors", write_vectors)
    embed(catalog, shards, encoder="pixels", workers=1)
    assert num_failures(catalog, "pixels") == 0
    assert rows(catalog, "select count(*) from samples") == [(30,)]


def test_default_names_are_folder_names():
    assert default_name("open_clip:ViT-B-32/openai@336") == "open_clip-ViT-B-32-openai@336"
    assert default_name("onnx:models/small.onnx@64") == "small.onnx@64"


def test_vectors_too_large_for_half_precision_fail_and_say_so(tmp_path, shards, monkeypatch):
    def flatten(images: np.ndarray) -> np.ndarray:
        return np.where(images > 0.9, 1e6, images).reshape(len(images), -1)

    monkeypatch.setattr(pixels_encoder, "flatten", flatten)
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, shards[:1], encoder="pixels@9", workers=1)
    assert rows(catalog, "select distinct stage from failures") == [("encode",)]
    check_conservation(catalog)


# -- other processes -------------------------------------------------------------------------------


def start_embed(catalog: Path, shards: list[str], workers: int, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "curate", "embed", *shards, "-c", str(catalog)]
    command += ["--encoder", "pixels@48", "-j", str(workers), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("captions", [False, True], ids=["images", "images and captions"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_embed_continues_and_gives_the_same_files(tmp_path, workers, captions):
    shards = write_corpus(tmp_path / "corpus", 16, 60, (96, 96))
    whole = Catalog(tmp_path / "whole")
    embed(whole, shards, encoder="pixels@48", workers=1, captions=captions)
    catalog = Catalog(tmp_path / "killed")
    process = start_embed(catalog.path, shards, workers, *["--captions"] * captions)
    folder = catalog.path / "embeddings" / "pixels@48"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("[0-9]*.parquet"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(rows(catalog, "select * from embedded_shards")) < 16
    time.sleep(0.3)  # its workers see that it is gone
    # An embedding goes on as it was begun, also where the option is left out.
    process = start_embed(catalog.path, shards, workers)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.strip()) == (0, "pixels@48"), err
    hashes = file_hashes(catalog, "pixels@48")
    assert len(hashes) == 16 * (1 + captions)
    assert hashes == file_hashes(whole, "pixels@48")
    sql = "select * from samples order by sample_id"
    assert rows(catalog, sql) == rows(whole, sql)
    check_conservation(catalog)


def test_queries_are_answered_while_embed_runs(tmp_path):
    shards = write_corpus(tmp_path / "corpus", 12, 60, (96, 96))
    process = start_embed(tmp_path / "catalog", shards, 2)
    counts = []
    sql = "select count(*) as n from samples"
    while process.poll() is None:
        result = run_curate("query", sql, "-f", "csv", "-c", tmp_path / "catalog")
        if result.returncode == 0:
            counts.append(int(result.stdout.split()[1]))
        else:
            assert "no catalog at" in result.stderr  # only before there is one
            assert not counts
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len(counts) >= 2
    assert counts == sorted(counts)


def test_a_second_embed_names_the_process_that_holds_the_embedding(tmp_path, shards):
    catalog = Catalog(tmp_path / "catalog").create()
    with catalog.write_lock(catalog.embedding_folder("pixels"), "x"):
        result = run_curate("embed", *shards, "-c", catalog.path, "--encoder", "pixels")
    assert result.returncode == 1
    assert f"process {os.getpid()} is working on the embedding 'pixels'" in result.stderr


def test_shards_larger_than_a_task_come_first():
    sizes = [10, 10, 900, 10, 10, 10, 600]
    tasks = [
        worker.ShardTask(number, f"{number}.tar", size, None, f"{number}.tar")
        for number, size in enumerate(sizes)
    ]
    groups = embed_stage._group_shards(tasks, workers=2, max_bytes=25)
    assert [[task.shard_id for task in group] for group in groups] == [
        [2],
        [6],
        [0, 1],
        [3, 4],
        [5],
    ]
