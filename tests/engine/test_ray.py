"""Machines of Ray, which are process trees of this one: what is lost with one of them, or with the driver, is made again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster
from conftest import rows, same_files, write_corpus

import curate
from curate.catalog import Catalog
from curate.engine import on

pytest.importorskip("ray", reason="no Ray: pip install -e '.[ray]'")
pytestmark = pytest.mark.ray
REPETITIONS = int(os.environ.get("CURATE_REPETITIONS", "1"))
DRIVER = Path(__file__).with_name("driver.py")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.add()
        yield made
    finally:
        made.stop()
    assert made.processes() == []


@pytest.fixture(scope="module")
def forty(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The photos of the clothing shards, dealt out to forty shards."""
    folder = tmp_path_factory.mktemp("forty")
    paths = [folder / f"{number:02d}.tar" for number in range(40)]
    keys: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        shards = [stack.enter_context(tarfile.open(path, "w")) for path in paths]
        for source in sorted((data / "clothing").glob("*train*.tar")):
            with tarfile.open(source) as tar:
                for member in tar:
                    shard = keys.setdefault(f"{source.name}/{member.name.partition('.')[0]}", len(keys) % 40)
                    shards[shard].addfile(member, tar.extractfile(member))
    return [str(path) for path in paths]


def start(cluster: Cluster, pause: float, *calls: tuple[str, list[object], dict[str, object]]) -> subprocess.Popen[str]:
    words = [sys.executable, str(DRIVER), cluster.address, str(pause), json.dumps(calls, default=str)]
    return subprocess.Popen(words, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen[str]) -> str:
    out, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    return out


def wait_for(driver: subprocess.Popen[str], done: Callable[[], int], wanted: int) -> None:
    deadline = time.monotonic() + 60
    while done() < wanted:
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[1]
        time.sleep(0.02)


def lose_a_machine(cluster: Cluster, driver: subprocess.Popen[str], begin: Callable[[float], subprocess.Popen[str]]) -> str:
    cluster.machines[-1].kill()
    return finish(driver)


def lose_the_driver(cluster: Cluster, driver: subprocess.Popen[str], begin: Callable[[float], subprocess.Popen[str]]) -> str:
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    return finish(begin(0.0))


@pytest.mark.parametrize("lose", [lose_a_machine, lose_the_driver] * REPETITIONS)
def test_embed_and_export_lose_and_double_nothing(cluster, forty, tmp_path, lose):
    local = Catalog(tmp_path / "local")
    curate.embed(local, forty, encoder="pixels", workers=2)
    curate.score(local, "random")
    curate.select(local, keep=0.5, scoring="random", name="half")
    curate.export(local, "half", tmp_path / "export")
    catalog = Catalog(tmp_path / "ray")

    def embed(pause: float) -> subprocess.Popen[str]:
        return start(cluster, pause, ("embed", [catalog.path, forty], {"encoder": "pixels"}))

    def export(pause: float) -> subprocess.Popen[str]:
        return start(cluster, pause, ("export", [catalog.path, "half", tmp_path / "other"], {}))

    cluster.add()
    driver = embed(0.4)
    wait_for(driver, lambda: len(list(catalog.path.glob("embeddings/pixels/*.parquet"))), 40 // 3)
    lose(cluster, driver, embed)
    counts = "select count(*), sum(num_samples), sum(num_embedded), sum(num_failed) from embedded_shards join shards using "
    assert rows(catalog, f"{counts} (shard_id)") == rows(local, "select 40, count(*), count(*), 0 from samples")
    everything = "select * exclude (byte_offset), byte_offset from samples order by sample_id"
    assert rows(catalog, everything) == rows(local, everything)
    curate.score(catalog, "random")
    curate.select(catalog, keep=0.5, scoring="random", name="half")

    cluster.add()
    driver = export(0.15)
    wait_for(driver, lambda: len(list((tmp_path / "other").glob("*.tar"))), 40 // 3)
    lose(cluster, driver, export)
    same_files(local.path, catalog.path)
    same_files(tmp_path / "export", tmp_path / "other")
    assert curate.verify(catalog, [str(tmp_path / "other")], sources=True) == []


def test_every_stage_gives_the_same_files_on_a_ray_of_this_machine(tmp_path):
    """And in this process, where Ray looks for its token when it is imported: so no cluster with a token of its own."""
    shards = write_corpus(tmp_path / "corpus", 8, 20)

    def chain(name: str) -> None:
        catalog = tmp_path / name
        curate.embed(catalog, shards, encoder="pixels")
        curate.cluster(catalog, k=4)
        curate.probe(catalog, model="ridge", fraction=0.5, count=60)
        curate.score(catalog, ["ssl_prototypes", "memorization", "supervised_prototypes"])
        curate.select(catalog, keep=0.5, name="half")
        curate.export(catalog, "half", tmp_path / f"{name}-out")

    chain("local")
    with on("ray"):
        chain("ray")
    assert not list(Path(tempfile.gettempdir()).glob("curate-ray-*"))
    same_files(tmp_path / "local", tmp_path / "ray")
    same_files(tmp_path / "local-out", tmp_path / "ray-out")
    for table in ("assignments", "scores", "members"):
        everything = f"select * from {table} order by all"
        assert rows(Catalog(tmp_path / "local"), everything) == rows(Catalog(tmp_path / "ray"), everything)


def test_k_means_goes_on_where_it_was_when_a_machine_and_then_the_driver_are_lost(cluster, tmp_path, monkeypatch):
    from curate.stages import lloyd

    catalogs = {}
    for name in ("local", "ray"):
        catalogs[name] = Catalog(tmp_path / name)
        curate.embed(catalogs[name], write_corpus(tmp_path / "corpus", 8, 20), encoder="pixels", workers=1)
    options = {"k": 4, "sample": 20, "passes": 4}
    monkeypatch.setattr(lloyd, "_ROWS_A_GROUP", 20)
    curate.cluster(catalogs["local"], **options)

    def begin(pause: float) -> subprocess.Popen[str]:
        return start(cluster, pause, ("cluster", [catalogs["ray"].path], options))

    def passes() -> int:
        states = map(lloyd.begun, catalogs["ray"].path.glob("clusterings/*.begun.npz"))
        return max((state.passes for state in states if state), default=0)

    lost = cluster.add()
    driver = begin(0.6)
    wait_for(driver, passes, 1)
    lost.kill()
    wait_for(driver, passes, 2)
    lose_the_driver(cluster, driver, begin)
    files = [next((catalog.path / "clusterings").iterdir()) for catalog in catalogs.values()]
    np.testing.assert_allclose(np.load(files[0]), np.load(files[1]), atol=1e-6)
    assert [len(list((catalog.path / "clusterings").iterdir())) for catalog in catalogs.values()] == [1, 1]
    assert rows(catalogs["ray"], "select status, count(*) from runs where stage = 'cluster' group by all order by all") == [
        ("done", 1), ("killed", 1)
    ]  # fmt: skip


def test_what_is_wrong_with_a_cluster_is_said_in_a_line(monkeypatch):
    with pytest.raises(curate.CurateError, match="no Ray cluster at '127.0.0.1:1'"), on("ray", "127.0.0.1:1"):
        pass
    with pytest.raises(curate.CurateError, match="--engine dask: choose one of local, ray"), on("dask"):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(curate.CurateError, match=r"pip install 'foundation-curate\[ray\]'"), on("ray"):
        pass
