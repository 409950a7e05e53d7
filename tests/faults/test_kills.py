"""SIGKILL at every commit point and at random moments.

Afterwards the same command ends where an undisturbed one does. Eight kills in `make test`; more
than two hundred in `make test-kills`.
"""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import rows, write_shard

from curate.catalog.catalog import Catalog
from curate.errors import CurateError
from curate.execution.limits import cpu_count
from curate.formats.sample_ids import shard_filename
from curate.formats.samples import iterate_samples
from curate.formats.tar import TarReader
from curate.stages.verify import verify

CHAIN = Path(__file__).with_name("chain.py")
# What no two runs share: the time they take, and their numbers, also in the name of a file.
COLUMNS_OF_A_RUN = {"run_id", "seconds", "centroids_file"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, data) -> list[str]:
    """Three small shards of real images with captions, of thirty each."""
    folder = tmp_path_factory.mktemp("corpus")
    with min((data / "cifar10").glob("*test*.tar")).open("rb") as stream:
        samples = list(itertools.islice(iterate_samples(TarReader(stream)), 90))
    urls = []
    for number in range(3):
        shard = [
            (sample.key, {**sample.members, "txt": f"picture {sample.key}".encode()})
            for sample in samples[30 * number : 30 * number + 30]
        ]
        urls.append(str(write_shard(folder / f"{number:03d}.tar", shard)))
    return urls


def start_chain(
    folder: Path, corpus: list[str], workers: int = 1, kill_at: int = -1
) -> subprocess.Popen[str]:
    arguments = (folder / "catalog", folder / "out", workers, kill_at, *corpus)
    command = [sys.executable, str(CHAIN), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_chain(folder: Path, corpus: list[str], workers: int = 1) -> int:
    """Run to the end; return the number of commit points."""
    process = start_chain(folder, corpus, workers)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return int(out)


def read_state(folder: Path) -> dict[str, Any]:
    """All that must be equal: tables, vectors, outputs of probes, exported shards, manifests."""
    catalog = Catalog(folder / "catalog")
    state: dict[str, Any] = {}
    tables = rows(
        catalog,
        "select table_name, list(column_name order by column_index) from duckdb_columns() "
        "where table_name in (select table_name from duckdb_tables()) "
        "and table_name not in ('runs', 'meta') group by all",
    )
    for table, all_columns in tables:
        columns = [column for column in all_columns if column not in COLUMNS_OF_A_RUN]
        state[table] = rows(catalog, f"select {', '.join(columns)} from {table} order by all")
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"kmeans-\d+", "kmeans", str(path.relative_to(folder)))
        if path.name in ("manifest.json", "part.json"):
            state[name] = read_json(path)
        elif path.is_file() and path.name != "catalog.duckdb":
            state[name] = path.read_bytes()
    return json.loads(json.dumps(state, default=repr).replace(str(folder), ""))


def read_json(path: Path) -> dict[str, Any]:
    """A manifest or a part's summary without times and commits."""
    content = json.loads(path.read_text())
    for model in content.get("models", []):
        del model["seconds"]
    # By stage, because it has two runs of one where a killed one was continued.
    if "lineage" in content:
        content["lineage"] = {
            run.pop("stage"): run | {"started_at": None, "git_commit": None}
            for run in content["lineage"]
        }
    return content


def finished_vector_files(folder: Path) -> dict[str, int]:
    """The vector files that are finished, by inode: one that is written again has another."""
    vectors = folder / "catalog" / "embeddings" / "pixels"
    names = {path.name for path in (vectors / "pending").glob("[0-9]*.parquet")}
    if (folder / "catalog" / "catalog.duckdb").is_file():
        try:
            shards = rows(Catalog(folder / "catalog"), "select shard_id from embedded_shards")
        except CurateError:  # killed while the catalog was created
            return {}
        names |= {shard_filename(shard_id) for (shard_id,) in shards}
    return {name: (vectors / name).stat().st_ino for name in names}


def check_end(folder: Path, corpus: list[str], expected: dict[str, Any], workers: int = 1) -> None:
    """Run the chain once more after a kill: nothing is lost, doubled, different or left over."""
    inodes = finished_vector_files(folder)
    run_chain(folder, corpus, workers)
    state = read_state(folder)
    assert state.keys() == expected.keys()
    different = {name for name in expected if state[name] != expected[name]}
    assert {name: (state[name], expected[name]) for name in different} == {}
    assert not [path for path in folder.rglob("*") if ".tmp-" in path.name]
    inodes_after = finished_vector_files(folder)
    assert {name: inodes_after[name] for name in inodes} == inodes, "a shard was embedded twice"
    assert verify(folder / "catalog", check_sources=True) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus) -> tuple[int, dict[str, Any]]:
    """The number of commit points, and what the chain makes without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    num_points = run_chain(folder, corpus)
    return num_points, read_state(folder)


def die_at(folder: Path, corpus: list[str], expected: dict[str, Any], point: int) -> None:
    """Kill at a commit point."""
    process = start_chain(folder, corpus, kill_at=point)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    check_end(folder, corpus, expected)


def die_after(
    folder: Path, corpus: list[str], expected: dict[str, Any], seconds: float, workers: int
) -> bool:
    """Kill after so many seconds; False where it had ended before."""
    process = start_chain(folder, corpus, workers)
    time.sleep(seconds)
    is_running = process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    check_end(folder, corpus, expected, workers)
    return is_running


def test_killed_at_commit_points(tmp_path, corpus, undisturbed):
    num_points, expected = undisturbed
    assert num_points > 80

    def kill(number: int) -> None:
        point = num_points * number // 6 + number % 3
        die_at(tmp_path / str(number), corpus, expected, point)

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(kill, range(6)))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_some_moment(tmp_path, corpus, undisturbed, workers):
    die_after(tmp_path, corpus, undisturbed[1], 2.0 + workers, workers)


@pytest.mark.kills
def test_killed_at_every_commit_point_and_often_at_random(tmp_path, corpus, undisturbed):
    num_points, expected = undisturbed
    moments = random.Random(0)

    def kill(number: int) -> bool:
        folder = tmp_path / str(number)
        if number < num_points:
            die_at(folder, corpus, expected, number)
            return True
        return die_after(folder, corpus, expected, moments.uniform(0.3, 5), 1 + number % 2)

    with ThreadPoolExecutor(cpu_count()) as pool:
        num_killed = sum(pool.map(kill, range(num_points + max(40, 210 - num_points))))
    assert num_killed >= 200
    print(
        f"\n{num_points} commit points and {num_killed - num_points} random moments: "
        f"{num_killed} kills, 0 samples lost, 0 doubled, 0 differing files"
    )
