"""`curate.stream`: what an export would hold, from the shards themselves, in any division."""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import make_catalog, png, rows, write_shard
from range_store import serve_bucket

import curate
from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.formats.sample_ids import shard_of
from curate.stages.embed.stage import embed
from curate.stages.export.stage import export
from curate.stages.select.stage import select
from curate.streaming.dataset import SelectionStream

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Sample = dict[str, object]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Catalog:
    """A catalog of three shards; 16 of 30 samples are selected, and exported as index and shards.

    Tests read it only.
    """
    folder = tmp_path_factory.mktemp("world")
    catalog = make_catalog(folder)
    select(catalog, keep=16 / 30, strategy="random", name="half")
    export(catalog, "half", folder / "half.parquet", format="index")
    export(catalog, "half", folder / "half")
    return catalog


@pytest.fixture(scope="module")
def index(world) -> Path:
    return world.path.parent / "half.parquet"


@pytest.fixture(scope="module")
def exported(world) -> list[Sample]:
    """What webdataset reads from the exported shards."""
    shards = sorted(map(str, (world.path.parent / "half").glob("*.tar")))
    return [plain(sample) for sample in webdataset.WebDataset(shards, shardshuffle=False)]


def plain(sample: Sample) -> Sample:
    """Key and members; the file name of the shard instead of its URL."""
    members = {name: value for name, value in sample.items() if not name.startswith("__")}
    return {
        "__key__": sample["__key__"],
        "shard": Path(str(sample["__url__"])).name,
        **members,
    }


def identify(samples: list[Sample]) -> list[tuple[str, str]]:
    return [(str(sample["__url__"]), str(sample["__key__"])) for sample in samples]


def split_over(
    index: Path, world_size: int, num_workers: int, monkeypatch: pytest.MonkeyPatch, **options
) -> dict[tuple[int, int], list[Sample]]:
    """What each worker of each rank reads in its first epoch, by webdataset's convention."""
    parts = {}
    for rank, worker in itertools.product(range(world_size), range(num_workers)):
        monkeypatch.setenv("WORKER", str(worker))
        monkeypatch.setenv("NUM_WORKERS", str(num_workers))
        stream = curate.stream(index, rank=rank, world_size=world_size, **options)
        parts[rank, worker] = list(stream)
    return parts


def test_it_gives_what_the_exported_shards_hold(world, index, exported):
    assert len(exported) == 16
    for stream in (curate.stream(index), curate.stream(world, "half")):
        assert [plain(sample) for sample in stream] == exported
        assert len(stream) == 16


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(index, exported):
    stream = curate.stream(index, shuffle=5, seed=3)
    epochs = [[plain(sample) for sample in stream] for _ in range(3)]
    order = str
    for epoch in epochs:
        assert sorted(epoch, key=order) == sorted(exported, key=order)
    assert len({str(epoch) for epoch in epochs}) == 3
    again = curate.stream(index, shuffle=5, seed=3)
    again.set_epoch(2)
    assert [plain(sample) for sample in again] == epochs[2]
    other_seed = curate.stream(index, shuffle=5, seed=4)
    assert [plain(sample) for sample in other_seed] != epochs[0]


@pytest.mark.parametrize("shuffle", [0, 4])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_ranks_and_workers_divide_an_epoch(index, monkeypatch, world_size, num_workers, shuffle):
    everything = identify(list(curate.stream(index, rank=0, world_size=1)))
    for drop_last in (False, True):
        options = {"shuffle": shuffle, "drop_last": drop_last}
        parts = split_over(index, world_size, num_workers, monkeypatch, **options)
        per_rank = [
            sum(len(parts[rank, worker]) for worker in range(num_workers))
            for rank in range(world_size)
        ]
        samples = identify(list(itertools.chain.from_iterable(parts.values())))
        if drop_last:
            assert set(per_rank) == {16 // world_size}
            assert len(samples) == len(set(samples))
        else:
            assert set(per_rank) == {-(-16 // world_size)}
            assert set(samples) == set(everything)
        assert (
            len(curate.stream(index, rank=0, world_size=world_size, drop_last=drop_last))
            == (per_rank[0])
        )


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_a_data_loader_reads_every_sample_once(index, num_workers):
    from torch.utils.data import DataLoader

    stream = curate.stream(index, shuffle=4, seed=1, rank=0, world_size=1)
    loader = DataLoader(stream, batch_size=3, num_workers=num_workers, collate_fn=identify)
    everything = sorted(identify(list(curate.stream(index))))
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert sorted(itertools.chain.from_iterable(loader)) == everything


def test_it_is_the_first_stage_of_a_pipeline_of_webdataset(index):
    stream = curate.stream(index)
    pipeline = webdataset.FluidWrapper(stream).decode("pil").to_tuple("png", "cls", "__key__")
    images = [(image.size, label, key) for image, label, key in pipeline]
    assert len(images) == 16
    assert images[0][0] == (12, 10)
    stages = (webdataset.decode("rgb8"), webdataset.to_tuple("png", "txt"))
    pixels, text = next(iter(webdataset.DataPipeline(stream, *stages)))
    assert pixels.shape == (10, 12, 3)
    assert text.startswith("picture")


@pytest.mark.parametrize(("num_workers", "shuffle"), [(1, 0), (1, 6), (3, 6)])
def test_an_interrupted_epoch_goes_on_where_it_was(index, monkeypatch, num_workers, shuffle):
    generator = np.random.default_rng(num_workers + shuffle)
    monkeypatch.setenv("NUM_WORKERS", str(num_workers))
    for _ in range(20):
        monkeypatch.setenv("WORKER", str(generator.integers(num_workers)))
        options = {"shuffle": shuffle, "seed": 5, "rank": 0, "world_size": 1}
        uninterrupted = curate.stream(index, **options)
        epochs = [identify(list(uninterrupted)) for _ in range(2)]
        stop = int(generator.integers(len(epochs[1]) + 1))
        first = curate.stream(index, **options)
        list(first)
        before = identify(list(itertools.islice(first, stop)))
        state = first.state_dict()
        if not stop:  # asked for between two epochs
            state = (iter(first), first.state_dict())[1] if state["epoch"] == 0 else state
        second = curate.stream(index, **options)
        second.load_state_dict(json.loads(json.dumps(state)))
        assert before + identify(list(second)) == epochs[state["epoch"]]
        assert identify(list(second)) == identify(list(uninterrupted)) or state["epoch"] == 0


def test_the_state_is_that_of_an_iteration_from_its_beginning_on(index):
    stream = curate.stream(index, shuffle=4)
    assert (stream.state_dict()["epoch"], stream.state_dict()["position"]) == (0, 0)
    list(stream)
    assert (stream.state_dict()["epoch"], stream.state_dict()["position"]) == (0, 16)
    iterator = iter(stream)  # a loader asks for the state before it asks for a sample
    assert (stream.state_dict()["epoch"], stream.state_dict()["position"]) == (1, 0)
    next(iterator)
    assert (stream.state_dict()["epoch"], stream.state_dict()["position"]) == (1, 1)
    at_the_end = curate.stream(index, shuffle=4)
    at_the_end.load_state_dict(stream.state_dict() | {"position": 16})
    assert list(at_the_end) == []
    assert len(list(at_the_end)) == 16


def test_the_state_of_another_stream_is_refused(world, index):
    state = curate.stream(index, seed=1).state_dict()
    for other in (
        curate.stream(index, seed=2),
        curate.stream(index, seed=1, shuffle=3),
        curate.stream(index, seed=1, rank=1, world_size=2),
    ):
        with pytest.raises(CurateError, match="the state is of another stream"):
            other.load_state_dict(state)
    curate.stream(world, "half", seed=1).load_state_dict(state)  # the same selection


def test_the_rank_is_that_of_the_environment_and_goes_along_to_spawned_workers(index, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = curate.stream(index)
    samples = identify(list(stream))
    assert samples == identify(list(curate.stream(index, rank=1, world_size=2)))
    copy = pickle.dumps(stream)
    monkeypatch.delenv("RANK")
    assert identify(list(pickle.loads(copy)))[:8] == samples
    for options in ({"rank": 2, "world_size": 2}, {"rank": 1}):
        with pytest.raises(CurateError, match="rank"):
            curate.stream(index, **options)


def test_neighbours_are_read_together_and_gaps_only_within_their_budget(index):
    def count(max_waste: float) -> tuple[int, int]:
        stream = curate.stream(index, max_waste=max_waste)
        return stream.num_requests, stream.num_bytes

    num_bytes = sum(pq.read_table(index)["length"].to_pylist())
    touching = count(0)
    assert touching[1] == num_bytes
    assert touching[0] < 16
    some, everything = count(0.5), count(100)
    assert everything[0] == 3 < some[0] < touching[0]
    assert num_bytes < some[1] <= 1.5 * num_bytes < everything[1]


def test_weights_of_an_index_come_with_the_samples(index, tmp_path):
    table = pq.read_table(index)
    weights = pa.array([None, *(0.5 + number for number in range(15))])
    position = table.column_names.index("weight")
    weighted = tmp_path / "weighted.parquet"
    pq.write_table(table.set_column(position, "weight", weights), weighted)
    found = [sample["__weight__"] for sample in curate.stream(weighted)]
    assert found == [1.0, *(0.5 + number for number in range(15))]
    assert "__weight__" not in next(iter(curate.stream(index)))


def test_weights_of_a_selection_come_with_its_samples(tmp_path):
    catalog = make_catalog(tmp_path)
    select(catalog, keep=0.5, strategy="random", name="weighted", weights=True)
    expected = rows(catalog, "select weight from members order by sample_id")
    export(catalog, "weighted", tmp_path / "weighted.parquet", format="index")
    for stream in (
        curate.stream(catalog, "weighted"),
        curate.stream(tmp_path / "weighted.parquet"),
    ):
        assert [(sample["__weight__"],) for sample in stream] == expected


def test_keys_end_where_the_catalog_says(tmp_path):
    names = ("v1.00", "v1.50", "v2.00")
    write_shard(
        tmp_path / "in" / "0.tar",
        [(name, {"png": png(number)}) for number, name in enumerate(names)],
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, str(tmp_path / "in"), encoder="pixels", workers=1, key="last-dot")
    select(catalog, keep=1.0, strategy="random", name="all")
    export(catalog, "all", tmp_path / "all.parquet", format="index")
    samples = list(curate.stream(tmp_path / "all.parquet"))
    assert [sample["__key__"] for sample in samples] == list(names)
    assert samples[0]["png"] == png(0)


@pytest.fixture
def copies(world, tmp_path) -> Path:
    """A folder with copies of the shards, to be damaged."""
    shutil.copytree(world.path.parent / "corpus", tmp_path / "copies")
    return tmp_path / "copies"


def test_copies_of_the_shards_are_read_by_folder_and_by_prefix(world, index, copies, exported):
    corpus = world.path.parent / "corpus"
    for root in (copies, {f"{copies}/": f"{corpus}/"}):
        assert [plain(sample) for sample in curate.stream(index, root=root)] == exported
    with pytest.raises(CurateError, match="root= says nothing of"):
        list(curate.stream(index, root={"/here/": "/elsewhere/"}))


def test_a_shard_of_another_size_is_noticed(index, copies):
    with (copies / "001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(CurateError, match=r"001\.tar' has changed since it was embedded \(it has "):
        list(curate.stream(index, root=copies))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda member, data: (member, data[:-1] + b"!"), "the image of '.*' is another"),
        (lambda member, data: (f"x{member[1:]}", data), "where '.*' was is 'x"),
    ],
    ids=["image", "key"],
)
def test_another_sample_at_its_place_is_noticed(world, index, copies, change, reason):
    samples = []
    shard = str(world.path.parent / "corpus" / "001.tar")
    for sample in webdataset.WebDataset(shard, shardshuffle=False):
        key, image = change(sample["__key__"], sample["png"])
        samples.append((key, {"png": image, "cls": sample["cls"], "txt": sample["txt"]}))
    write_shard(copies / "001.tar", samples)
    with pytest.raises(CurateError, match=rf"001\.tar' has changed since .*{reason}"):
        list(curate.stream(index, root=copies))


def test_a_shard_that_is_gone_is_named_or_its_samples_are_counted(index, copies, caplog):
    (copies / "001.tar").unlink()
    with pytest.raises(CurateError, match=r"001\.tar' is gone: .*allow_missing"):
        list(curate.stream(index, root=copies))
    stream = curate.stream(index, root=copies, allow_missing=True, shuffle=4)
    in_second = pq.read_table(index)["url"].to_pylist()
    num_gone = sum(url.endswith("001.tar") for url in in_second)
    samples = list(stream)
    assert len(samples) == 16 - num_gone
    assert stream.num_missing == num_gone
    assert f"001.tar' is gone: {num_gone} of its samples were left out" in caplog.text


def test_an_index_is_refused_that_is_none(world, index, tmp_path):
    table = pq.read_table(index)
    broken = {
        "has no column 'key'": table.drop_columns(["key"]),
        "not sorted by shard and offset": table.take(list(reversed(range(16)))),
        "'offset' has nulls": table.set_column(1, "offset", pa.nulls(16, pa.int64())),
    }
    for problem, content in broken.items():
        pq.write_table(content, tmp_path / "x.parquet")
        with pytest.raises(CurateError, match=f"is no index of a selection .*{problem}"):
            curate.stream(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(CurateError, match="it is no Parquet file"):
        curate.stream(tmp_path / "x.parquet")
    with pytest.raises(CurateError, match="cannot be read"):
        curate.stream(tmp_path / "nowhere.parquet")
    with pytest.raises(OptionError, match="is of one selection already"):
        curate.stream(index, "half")
    with pytest.raises(OptionError, match="a catalog and a selection's name"):
        curate.stream(world)
    with pytest.raises(OptionError, match="not below 0"):
        curate.stream(index, shuffle=-1)


def test_an_empty_index_is_an_empty_stream(index, tmp_path):
    pq.write_table(pq.read_table(index).slice(0, 0), tmp_path / "empty.parquet")
    for shuffle in (0, 10):
        stream = curate.stream(tmp_path / "empty.parquet", shuffle=shuffle, rank=1, world_size=2)
        assert (list(stream), len(stream)) == ([], 0)


def test_the_complement_is_streamed_too(world, index, tmp_path):
    export(world, "half", tmp_path / "rest.parquet", format="index", complement=True)
    rest = identify(list(curate.stream(tmp_path / "rest.parquet")))
    kept = identify(list(curate.stream(index)))
    assert len({*rest, *kept}) == len(rest) + len(kept) == 30


def test_an_index_lacks_no_member_of_its_selection(tmp_path):
    catalog = make_catalog(tmp_path)
    select(catalog, keep=1.0, strategy="random", name="all")
    with catalog.writing() as connection:
        connection.execute("delete from samples where key = '0003'")
    for out, list_format in (("all.parquet", "index"), ("all.txt", "keys")):
        with pytest.raises(CurateError, match="3 members of 'all' are no longer in the corpus"):
            export(catalog, "all", tmp_path / out, format=list_format)
        assert not (tmp_path / out).exists()
    with pytest.raises(CurateError, match="3 members"):
        curate.stream(catalog, "all")


def test_a_machine_that_trains_needs_no_database_and_no_torch(index):
    blocked = ("duckdb", "torch", "faiss", "xxhash", "webdataset", "typer", "rich", "PIL", "timm")
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        "import curate\n"
        f"stream = curate.stream({str(index)!r}, shuffle=3)\n"
        "assert len([sample['png'] for sample in stream]) == 16"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_fork_reads_what_its_parent_reads(index):
    stream = curate.stream(index, shuffle=3)
    iterator = iter(stream)
    next(iterator)
    child = os.fork()
    if not child:
        os._exit(0 if len(list(stream)) == 16 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(iterator)) == 15


def to_store(index: Path, folder: Path) -> Path:
    """The index with the shards' URLs in the store."""
    table = pq.read_table(index)
    urls = [f"s3://corpus/{Path(url).name}" for url in table["url"].to_pylist()]
    pq.write_table(table.set_column(0, "url", pa.array(urls)), folder / "stored.parquet")
    return folder / "stored.parquet"


def test_from_a_store_come_only_the_ranges_of_the_samples(
    world, index, exported, tmp_path, monkeypatch
):
    stored = to_store(index, tmp_path)
    with serve_bucket(world.path.parent / "corpus", monkeypatch) as store:
        for shuffle in (0, 4):
            stream = curate.stream(stored, shuffle=shuffle, max_waste=0.5)
            store.num_requests = store.num_bytes = 0
            samples = [plain(sample) for sample in stream]
            assert sorted(samples, key=str) == sorted(exported, key=str)
            assert (store.num_requests, store.num_bytes) == (stream.num_requests, stream.num_bytes)
        # As https, from a server that knows ranges.
        address = f"http://127.0.0.1:{store.server_port}/corpus/"
        in_folder = curate.stream(stored, root=world.path.parent / "corpus")
        assert [plain(sample) for sample in in_folder] == exported
        mapped = curate.stream(stored, root={address: "s3://corpus/"})
        store.num_requests = store.num_bytes = 0
        assert [plain(sample) for sample in mapped] == exported
        assert (store.num_requests, store.num_bytes) == (mapped.num_requests, mapped.num_bytes)


def test_what_a_store_lacks_is_named_or_counted(world, index, tmp_path, monkeypatch):
    stored = to_store(index, tmp_path)
    shutil.copytree(world.path.parent / "corpus", tmp_path / "bucket")
    (tmp_path / "bucket" / "002.tar").unlink()
    with serve_bucket(tmp_path / "bucket", monkeypatch):
        with pytest.raises(CurateError, match=r"s3://corpus/002\.tar' is gone"):
            list(curate.stream(stored))
        stream = curate.stream(stored, allow_missing=True)
        assert len(list(stream)) + stream.num_missing == 16
        with (tmp_path / "bucket" / "001.tar").open("r+b") as file:
            file.truncate(3000)
        with pytest.raises(CurateError, match=r"001\.tar' has changed since .*it has 3,000 bytes"):
            list(curate.stream(stored, allow_missing=True))


def test_a_shard_of_the_selection_is_where_its_id_says(world, index):
    sql = "select sample_id from members where selection = 'half' order by sample_id"
    ids = np.array([sample_id for (sample_id,) in rows(world, sql)])
    stream: SelectionStream = curate.stream(index)
    shards = [Path(url).name for url, _ in identify(list(stream))]
    ordered = sorted(set(shards))
    assert [ordered.index(name) for name in shards] == (shard_of(ids) - shard_of(ids[0])).tolist()
