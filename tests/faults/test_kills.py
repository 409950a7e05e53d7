"""SIGKILL at every commit point and at random moments: afterwards the same command ends where an undisturbed one does.

Ten kills in `make test`; more than two hundred in `make test-kills`.
"""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import rows

from curate import engine
from curate.catalog import Catalog
from curate.shards import samples
from curate.stages.verify import verify
from curate.tar import TarReader

CHAIN = Path(__file__).with_name("chain.py")
# What no two runs share: times, process numbers, and numbers of runs.
OF_A_RUN = {"run_id", "made_from", "seconds", "version", "centroids"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, data) -> list[str]:
    """Three small shards of real images, of thirty each."""
    folder = tmp_path_factory.mktemp("corpus")
    with min((data / "cifar10").glob("*test*.tar")).open("rb") as stream:
        found = [sample for sample, _ in zip(samples(TarReader(stream)), range(90), strict=False)]
    urls = []
    for number in range(3):
        urls.append(str(folder / f"{number:03d}.tar"))
        with tarfile.open(urls[-1], "w") as tar:
            for sample in found[30 * number : 30 * number + 30]:
                for kind, data in sample.members.items():
                    member = tarfile.TarInfo(f"{sample.key}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return urls


def run(folder: Path, corpus: list[str], workers: int = 1, kill_at: int = -1) -> subprocess.Popen[str]:
    asked = [sys.executable, str(CHAIN), str(folder / "catalog"), str(folder / "out"), str(workers), str(kill_at), *corpus]
    return subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path, corpus: list[str], workers: int = 1) -> int:
    """Run to the end; return the number of commit points."""
    process = run(folder, corpus, workers)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return int(out)


def state(folder: Path) -> dict[str, Any]:
    """Everything that must be equal: tables, files of vectors and probes, exported shards, manifests."""
    catalog = Catalog(folder / "catalog")
    found: dict[str, Any] = {}
    for (table,) in rows(catalog, "select table_name from duckdb_tables() where table_name not in ('runs', 'meta') order by 1"):
        with catalog.reading() as connection:
            columns = [name for name, *_ in connection.execute(f"describe {table}").fetchall() if name not in OF_A_RUN]
        found[table] = rows(catalog, f"select {', '.join(columns)} from {table} order by all")
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"kmeans-\d+", "kmeans", str(path.relative_to(folder)))
        if path.name in ("manifest.json", "part.json"):
            text = json.loads(path.read_text())
            for row in text.get("models", []):
                row.pop("seconds")
            if "lineage" in text:  # which tells of both runs, where a killed one was gone on with
                text["lineage"] = {
                    step.pop("stage"): step | {"started_at": None, "git_commit": None} for step in text["lineage"]
                }
            found[name] = text
        elif path.is_file() and path.name != "catalog.duckdb":
            found[name] = path.read_bytes()
    return json.loads(json.dumps(found, default=repr).replace(str(folder), ""))


def embedded(folder: Path) -> dict[str, int]:
    """The vector files that are finished, by inode: one that is written anew has another."""
    place = folder / "catalog" / "embeddings" / "pixels"
    done = {path.name for path in (place / "pending").glob("[0-9]*.parquet")}
    if (folder / "catalog" / "catalog.duckdb").is_file():
        try:
            shards = rows(Catalog(folder / "catalog"), "select shard_id from embedded_shards")
            done |= {f"{shard_id:08d}.parquet" for (shard_id,) in shards}
        except Exception:
            return {}
    return {name: (place / name).stat().st_ino for name in done}


def check(folder: Path, corpus: list[str], wanted: dict[str, Any], workers: int, before: dict[str, int]) -> None:
    finished(folder, corpus, workers)
    found = state(folder)
    assert found.keys() == wanted.keys()
    assert {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]} == {}
    assert not [path for path in folder.rglob("*") if ".tmp-" in path.name]
    assert {name: inode for name, inode in embedded(folder).items() if name in before} == before  # nothing embedded twice
    assert verify(folder / "catalog", sources=True) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus) -> tuple[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    points = finished(folder, corpus)
    return points, state(folder)


def die_at(folder: Path, corpus: list[str], wanted: dict[str, Any], point: int) -> None:
    process = run(folder, corpus, kill_at=point)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    check(folder, corpus, wanted, 1, embedded(folder))


def die_after(folder: Path, corpus: list[str], wanted: dict[str, Any], seconds: float, workers: int) -> bool:
    process = run(folder, corpus, workers)
    time.sleep(seconds)
    killed = process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    check(folder, corpus, wanted, workers, embedded(folder))
    return killed


def test_killed_at_commit_points(tmp_path, corpus, undisturbed):
    points, wanted = undisturbed
    assert points > 80
    with ThreadPoolExecutor(engine.cores()) as pool:
        list(pool.map(lambda n: die_at(tmp_path / str(n), corpus, wanted, points * n // 8 + n % 3), range(8)))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_some_moment(tmp_path, corpus, undisturbed, workers):
    die_after(tmp_path, corpus, undisturbed[1], 2.0 + workers, workers)


@pytest.mark.kills
def test_killed_at_every_commit_point_and_often_at_random(tmp_path, corpus, undisturbed):
    points, wanted = undisturbed
    moments = random.Random(0)

    def one(number: int) -> bool:
        if number < points:
            die_at(tmp_path / str(number), corpus, wanted, number)
            return True
        return die_after(tmp_path / str(number), corpus, wanted, moments.uniform(0.3, 5), 1 + number % 2)

    with ThreadPoolExecutor(engine.cores()) as pool:
        killed = list(pool.map(one, range(points + max(40, 210 - points))))
    assert sum(killed) >= 200
    print(f"\n{points} commit points and {sum(killed) - points} random moments: {sum(killed)} kills, "
          "0 samples lost, 0 doubled, 0 differing files")  # fmt: skip
