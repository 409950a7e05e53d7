"""What is lost with a machine of a Ray cluster, or with the driver, is made again.

The machines are process trees of this one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Cluster
from conftest import png, rows, same_files, write_corpus, write_shard

import curate
from curate.catalog.catalog import Catalog
from curate.execution.engine import use_engine
from curate.stages.cluster import refinement
from curate.verbs import VERBS

pytest.importorskip("ray", reason="no Ray: pip install -e '.[ray]'")
pytestmark = pytest.mark.ray
REPETITIONS = int(os.environ.get("CURATE_REPETITIONS", "1"))
DRIVER = Path(__file__).with_name("driver.py")
GPU_DRIVER = Path(__file__).with_name("gpu_driver.py")

StartDriver = Callable[[float], subprocess.Popen[str]]  # takes the pause before each item


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.add()
        yield cluster
    finally:
        cluster.stop()
    assert cluster.processes() == []


@pytest.fixture(scope="module")
def forty_shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A thousand photos of the clothing shards, dealt out to forty shards."""
    folder = tmp_path_factory.mktemp("forty")
    paths = [folder / f"{number:02d}.tar" for number in range(40)]
    shard_of_key: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        shards = [stack.enter_context(tarfile.open(path, "w")) for path in paths]
        for source in sorted((data / "clothing").glob("*train*.tar"))[:3]:
            with tarfile.open(source) as tar:
                for member in tar:
                    key = f"{source.name}/{member.name.partition('.')[0]}"
                    shard = shard_of_key.setdefault(key, len(shard_of_key) % 40)
                    shards[shard].addfile(member, tar.extractfile(member))
    return [str(path) for path in paths]


def start_driver(
    cluster: Cluster, pause: float, verb: str, arguments: list[object], **options: object
) -> subprocess.Popen[str]:
    calls = json.dumps([[verb, arguments, options]], default=str)
    return start_python(cluster, str(DRIVER), cluster.address, str(pause), calls)


def start_python(cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        env=cluster.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(driver: subprocess.Popen[str]) -> str:
    out, errors = driver.communicate(timeout=150)
    assert driver.returncode == 0, errors
    return out


def wait_for(driver: subprocess.Popen[str], progress: Callable[[], int], at_least: int) -> None:
    deadline = time.monotonic() + 60
    while progress() < at_least:
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[1]
        time.sleep(0.02)


def lose_a_machine(cluster: Cluster, driver: subprocess.Popen[str], restart: StartDriver) -> str:
    cluster.machines[-1].kill()
    return finish(driver)


def lose_the_driver(cluster: Cluster, driver: subprocess.Popen[str], restart: StartDriver) -> str:
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    return finish(restart(0.0))


@pytest.mark.parametrize("lose", [lose_a_machine, lose_the_driver] * REPETITIONS)
def test_embed_and_export_lose_and_double_nothing(cluster, forty_shards, tmp_path, lose):
    local = Catalog(tmp_path / "local")
    curate.embed(local, forty_shards, encoder="pixels", workers=2)
    curate.score(local, "random")
    curate.select(local, keep=0.5, scoring="random", name="half")
    curate.export(local, "half", tmp_path / "export")
    catalog = Catalog(tmp_path / "ray")
    out = tmp_path / "other"

    def embed(pause: float) -> subprocess.Popen[str]:
        return start_driver(cluster, pause, "embed", [catalog.path, forty_shards], encoder="pixels")

    def export(pause: float) -> subprocess.Popen[str]:
        return start_driver(cluster, pause, "export", [catalog.path, "half", out])

    cluster.add()
    driver = embed(0.4)
    vectors = catalog.path / "embeddings" / "pixels"
    wait_for(driver, lambda: len(list(vectors.glob("*.parquet"))), 40 // 3)
    lose(cluster, driver, embed)
    counts = rows(
        catalog,
        "select count(*), sum(num_samples), sum(num_embedded), sum(num_failed) "
        "from embedded_shards join shards using (shard_id)",
    )
    assert counts == rows(local, "select 40, count(*), count(*), 0 from samples")
    sql = "select * from samples order by sample_id"
    assert rows(catalog, sql) == rows(local, sql)
    curate.score(catalog, "random")
    curate.select(catalog, keep=0.5, scoring="random", name="half")

    cluster.add()
    driver = export(0.15)
    wait_for(driver, lambda: len(list(out.glob("*.tar"))), 40 // 3)
    lose(cluster, driver, export)
    same_files(local.path, catalog.path)
    same_files(tmp_path / "export", out)
    assert curate.verify(catalog, [str(out)], check_sources=True) == []


def test_every_stage_gives_the_same_files_on_a_ray_of_this_machine(tmp_path):
    """In this process, and so without a token: Ray reads its token when it is imported."""
    shards = write_corpus(tmp_path / "corpus", 8, 20)

    def run_chain(name: str) -> Catalog:
        catalog = Catalog(tmp_path / name)
        curate.embed(catalog, shards, encoder="pixels", captions=True)
        curate.cluster(catalog, k=4)
        curate.probe(catalog, model="ridge", fraction=0.5, count=60)
        curate.score(catalog, ["ssl_prototypes", "memorization", "supervised_prototypes"])
        curate.select(catalog, keep=0.5, name="half")
        curate.select(catalog, keep=0.3, strategy="d2", name="diverse")
        curate.cluster(catalog, k=3, within="half")
        curate.score(catalog, ["ssl_prototypes", "supervised_prototypes"], within="half")
        curate.export(catalog, "half", tmp_path / f"{name}-out")
        return catalog

    local = run_chain("local")
    with use_engine("ray"):
        on_ray = run_chain("ray")
    assert not list(Path(tempfile.gettempdir()).glob("curate-ray-*"))
    same_files(local.path, on_ray.path)
    same_files(tmp_path / "local-out", tmp_path / "ray-out")
    for table in ("assignments", "scores", "members"):
        sql = f"select * from {table} order by all"
        assert rows(on_ray, sql) == rows(local, sql)


def test_k_means_continues_where_it_was_when_a_machine_and_then_the_driver_are_lost(
    cluster, tmp_path, monkeypatch
):
    shards = write_corpus(tmp_path / "corpus", 8, 20)
    local, on_ray = Catalog(tmp_path / "local"), Catalog(tmp_path / "ray")
    for catalog in (local, on_ray):
        curate.embed(catalog, shards, encoder="pixels", workers=1)
    options = {"k": 4, "fit_rows": 20, "full_iterations": 4}
    monkeypatch.setattr(refinement, "_GROUP_ROWS", 20)
    curate.cluster(local, **options)

    def start(pause: float) -> subprocess.Popen[str]:
        return start_driver(cluster, pause, "cluster", [on_ray.path], **options)

    def finished_iterations() -> int:
        files = on_ray.path.glob("clusterings/*.begun.npz")
        checkpoints = [refinement.load_checkpoint(str(file)) for file in files]
        return max((one.iterations for one in checkpoints if one), default=0)

    machine = cluster.add()
    driver = start(0.6)
    wait_for(driver, finished_iterations, 1)
    machine.kill()
    wait_for(driver, finished_iterations, 2)
    lose_the_driver(cluster, driver, start)
    (local_file,), (ray_file,) = (
        list((catalog.path / "clusterings").iterdir()) for catalog in (local, on_ray)
    )
    np.testing.assert_allclose(np.load(local_file), np.load(ray_file), atol=1e-6)
    statuses = "select status, count(*) from runs where stage = 'cluster' group by all order by all"
    assert rows(on_ray, statuses) == [("done", 1), ("killed", 1)]


def test_with_a_gpu_in_one_of_two_machines_the_files_are_those_of_this_machine(cluster, tmp_path):
    """The driver and the other machine have none, and need none."""
    shards = write_corpus(tmp_path / "corpus", 8, 20)
    samples = [(f"{number}", {"png": png(number) if number % 3 else b"x"}) for number in range(9)]
    shards.append(str(write_shard(tmp_path / "corpus" / "broken.tar", samples)))
    local, on_ray = Catalog(tmp_path / "local"), Catalog(tmp_path / "ray")

    def list_calls(catalog: Catalog, encoder: str) -> list[Any]:
        out = str(tmp_path / f"{catalog.path.name}-out")
        return [
            ["embed", [shards], {"encoder": encoder, "name": "tiny", "batch_size": 32}],
            ["cluster", [], {"k": 4}],
            ["score", ["ssl_prototypes"], {}],
            ["select", [], {"keep": 0.5, "name": "half"}],
            ["export", ["half", out], {}],
        ]

    for verb, arguments, options in list_calls(local, "pixels"):
        VERBS[verb].load()(local, *arguments, **options)
    calls = [
        [verb, [str(on_ray.path), *arguments], options]
        for verb, arguments, options in list_calls(on_ray, "tiny")
    ]
    machine = cluster.add(num_cpus=2, num_gpus=1)
    try:
        finish(start_python(cluster, str(GPU_DRIVER), cluster.address, json.dumps(calls)))
    finally:
        machine.kill()
    same_files(local.path, on_ray.path)
    same_files(tmp_path / "local-out", tmp_path / "ray-out")
    for table in ("samples", "failures", "assignments", "scores", "members"):
        sql = f"select * from {table} order by all"
        assert rows(on_ray, sql) == rows(local, sql)
    sql = "select stage, device from runs where stage = 'embed'"
    assert rows(on_ray, sql) == [("embed", "cuda")]


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [
        ("ray", "127.0.0.1:1", "no Ray cluster at '127.0.0.1:1'"),
        ("dask", None, "--engine dask: choose one of local, ray"),
    ],
)
def test_a_cluster_that_cannot_be_is_one_line(name, address, reason):
    with pytest.raises(curate.CurateError, match=reason), use_engine(name, address):
        pass


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    reason = r"pip install 'foundation-curate\[ray\]'"
    with pytest.raises(curate.CurateError, match=reason), use_engine("ray"):
        pass


class FakeRay(types.ModuleType):
    """Ray as far as `connect` calls it: it is connected already, or fails to."""

    def __init__(self, error: Exception | None = None, *, is_connected: bool = False) -> None:
        super().__init__("ray")
        self.error, self.is_connected = error, is_connected
        self.num_shutdowns = 0

    def is_initialized(self) -> bool:
        return self.is_connected

    def init(self, **options: object) -> None:
        if self.error:
            raise self.error

    def shutdown(self) -> None:
        self.num_shutdowns += 1


LONG_PATH = OSError(
    "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long/raylet"
)
OTHER_VERSIONS = RuntimeError(
    "Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.11.9\n"
    "This process on node was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)


@pytest.mark.parametrize(
    ("fake", "address", "reason"),
    [
        (FakeRay(LONG_PATH), None, "too long a path for Ray's sockets: set TMPDIR to a shorter"),
        (
            FakeRay(OTHER_VERSIONS),
            "auto",
            "the Ray cluster at 'auto' has Ray 2.40.0, Python 3.11.9, "
            "this machine Ray 2.60.0, Python 3.11.7: install the same versions",
        ),
        (FakeRay(is_connected=True), None, r"connected to Ray already.* call ray.shutdown\(\)"),
        (FakeRay(), "ray://head:10001", "'ray://head:10001' is an address of Ray's client: run"),
    ],
    ids=["long TMPDIR", "other versions", "an earlier init", "ray://"],
)
def test_why_there_is_no_cluster_is_one_line_without_advice_on_tokens(
    monkeypatch, fake, address, reason
):
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(curate.CurateError, match=reason) as caught, use_engine("ray", address):
        pass
    message = str(caught.value)
    assert "token" not in message.lower()
    assert "\n" not in message
    # The connection of whoever called ray.init before is theirs.
    assert not fake.is_connected or fake.num_shutdowns == 0


def test_a_cluster_that_refuses_may_want_a_token(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(ConnectionError("no answer")))
    reason = r"cannot reach the Ray cluster at 'auto' \(no answer\).*RAY_AUTH_TOKEN"
    with pytest.raises(curate.CurateError, match=reason), use_engine("ray", "auto"):
        pass
