"""Helpers of the tests, and a world small enough to see.

Its corpus is three shards of ten small images in two classes, one of them rare.
"""

import filecmp
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from duckdb import DuckDBPyConnection
from PIL import Image

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord, TrainingRunRecord, ValidationRecord
from curate.formats.vectors import read_vectors
from curate.progress import configure_output, log
from curate.stages.embed.stage import embed
from curate.stages.evidence.comparisons import pack_answers

_FILES_WITH_TIMES = {"catalog.duckdb", "part.json", "manifest.json"}


# What takes longest comes first, or one worker would still be at it when the others have finished.
_LONGEST_FIRST = ("test_real_images.py", "test_ray.py", "test_kills.py", "test_wheel.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST_FIRST)


@pytest.fixture(autouse=True)
def _messages_reach_caplog() -> Iterator[None]:
    """A test that runs a command line leaves the package's logger as it found it."""
    handlers, level = list(log.handlers), log.level
    yield
    configure_output(messages=False, bars=False)
    log.handlers[:], log.propagate = handlers, True
    log.setLevel(level)


@pytest.fixture(autouse=True, scope="module")
def _no_encoder_of_other_tests() -> None:
    """A process keeps text encoders by their names; tests put their own in the place of some."""
    inference = sys.modules.get("curate.stages.embed.inference")
    if inference:
        inference.load_text_encoder.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoders that tests export are not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _cache_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for another test."""
    name = f"cache-{time.monotonic_ns()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / name))


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A PNG of random pixels; `size` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write_shard(
    path: Path, samples: list[tuple[str, dict[str, bytes]]], format: int = tarfile.GNU_FORMAT
) -> Path:
    """A tar of samples (key, {extension: bytes}), by the standard library, not by our own code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for key, members in samples:
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_corpus(
    folder: Path, num_shards: int = 3, per_shard: int = 10, size: tuple[int, int] = (12, 10)
) -> list[str]:
    """Shards 000.tar, 001.tar …; keys repeat across shards.

    Every fifth sample is of class 1, the others are of class 0.
    """
    urls = []
    for shard in range(num_shards):
        samples = [
            (
                f"{position:04d}",
                {
                    "png": png(1000 * shard + position, size),
                    "cls": b"1" if position % 5 == 0 else b"0",
                    "txt": f"picture {position}".encode(),
                },
            )
            for position in range(per_shard)
        ]
        urls.append(str(write_shard(folder / f"{shard:03d}.tar", samples)))
    return urls


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """The shards of the small corpus."""
    return write_corpus(tmp_path / "corpus")


def make_catalog(folder: Path) -> Catalog:
    """The three shards embedded by pixels."""
    catalog = Catalog(folder / "catalog")
    embed(catalog, write_corpus(folder / "corpus"), encoder="pixels", workers=1)
    return catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalog of the small corpus, embedded by pixels."""
    return make_catalog(tmp_path)


def run_curate(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own; `options` are those of subprocess.run."""
    command = [sys.executable, "-m", "curate", *map(str, words)]
    return subprocess.run(command, **{"capture_output": True, "text": True, **options})


def rows(catalog: Catalog, sql: str, *parameters: object) -> list[tuple]:
    """The rows that a query of the catalog returns."""
    with catalog.reading() as connection:
        return connection.execute(sql, list(parameters)).fetchall()


def load_vectors(catalog: Catalog, embedding: str = "pixels") -> np.ndarray:
    """The vectors of an embedding, in the order of the sample ids: float16 [n, dim]."""
    files = catalog.vector_files(embedding)
    return np.concatenate([read_vectors(file).vectors for file in files])


def load_scores(catalog: Catalog, scoring: str) -> list[float | None]:
    """The scores of a scoring, in the order of the sample ids."""
    sql = "select score from scores where scoring = ? order by sample_id"
    return [score for (score,) in rows(catalog, sql, scoring)]


def same_files(left: Path, right: Path) -> None:
    """Assert that every file in one of two folders is in both, and the same."""
    left_files, right_files = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (left, right)
    )
    assert left_files == right_files
    different = [
        path
        for path in left_files
        if path.name not in _FILES_WITH_TIMES
        and not filecmp.cmp(left / path, right / path, shallow=False)
    ]
    assert different == []


def members(catalog: Catalog, selection: str) -> list[int]:
    """The sample ids of a selection, sorted."""
    sql = "select sample_id from members where selection = ? order by sample_id"
    return [sample_id for (sample_id,) in rows(catalog, sql, selection)]


def add_scoring(catalog: Catalog, name: str, scores: dict[int, float | None]) -> None:
    """A scoring written by hand."""
    with catalog.record_run("score", name, {"metric": name}) as run_id:
        pass
    record = ScoringRecord(
        scoring=name,
        metric=name,
        source=None,
        arguments="{}",
        num_samples=len(scores),
        num_null=0,
        reliability=None,
        fingerprint=name,
        run_id=run_id,
    )
    with catalog.writing() as connection:
        sets.replace_set(connection, record)
        connection.executemany(
            "insert into scores values (?, ?, ?, null)",
            [[name, sample_id, score] for sample_id, score in scores.items()],
        )
        sets.refresh_sample_scores(connection)


def insert_validation(connection: DuckDBPyConnection, name: str, **columns: Any) -> None:
    """A validation written by hand, in an open transaction."""
    defaults = {
        "validation": name,
        "embedding": "pixels",
        "model": "mlp",
        "epochs": 1,
        "schedule": "epochs",
        "seeds": 3,
        "seed": 0,
        "test": [],
        "num_test": 5,
        "num_samples": 10,
        "num_training_runs": 9,
        "fingerprint": "",
        "run_id": 0,
        "transfer": [],
        "task": "labels",
        "setting": "{}",
        "tolerance": 0.5,
    }
    sets.replace_set(connection, ValidationRecord(**{**defaults, **columns}))


def insert_training_run(
    connection: DuckDBPyConnection,
    validation: str,
    arm: str,
    selection: str | None,
    seed: int,
    accuracy: float,
    *,
    keep: float = 0.5,
    num_samples: int = 5,
    num_test: int = 10_000,
) -> None:
    """A training run of a validation written by hand, in an open transaction.

    It is right on the first test samples; `refresh_comparisons` then compares the arms.
    """
    fingerprints = connection.execute(
        "select fingerprint from selections where selection = ?", [selection]
    ).fetchall()
    record = TrainingRunRecord(
        validation=validation,
        arm=arm,
        selection=selection,
        keep=keep,
        seed=seed,
        num_samples=num_samples,
        epochs=1,
        accuracy=accuracy,
        loss=0.0,
        seconds=0.0,
        test="test",
        num_test=num_test,
        correct=pack_answers(np.arange(num_test) < round(accuracy * num_test)),
        selection_fingerprint=fingerprints[0][0] if fingerprints else None,
        distance_99=None,
    )
    sets.insert_row(connection, "training_runs", record._asdict())


@pytest.fixture(scope="session")
def data() -> Path:
    """Real images: ../shared/data next to the project, or the folder in CURATE_DATA."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CURATE_DATA") or default)
    if not (folder / "clothing").is_dir():
        pytest.skip(
            f"no real images at {folder}: "
            "set CURATE_DATA to the folder that has clothing/ and cifar10/"
        )
    return folder


@pytest.fixture(scope="session")
def worlds() -> ModuleType:
    """The script ../shared/cases/worlds.py, which makes odd corpora and odd web servers."""
    default = Path(__file__).resolve().parents[2] / "shared" / "cases"
    path = Path(os.environ.get("CURATE_CASES") or default) / "worlds.py"
    if not path.is_file():
        pytest.skip(f"no {path.name} at {path.parent}: set CURATE_CASES to the folder that has it")
    spec = importlib.util.spec_from_file_location("worlds", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
