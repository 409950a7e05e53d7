"""A world small enough to see: three shards of ten little images, two classes, one of them rare."""

import filecmp
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate import sets
from curate.catalog import Catalog
from curate.stages.embed import embed

TIMED = {"catalog.duckdb", "part.json", "manifest.json"}  # they hold times


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write_shard(path: Path, samples: list[tuple[str, dict[str, bytes]]], format: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of samples (key, {extension: bytes}), written by the standard library, not by our own code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for key, members in samples:
            for kind, data in members.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_corpus(folder: Path, num_shards: int = 3, per_shard: int = 10, size: tuple[int, int] = (12, 10)) -> list[str]:
    """Shards 000.tar, 001.tar …; every fifth sample is of class 1, the others of class 0; keys repeat across shards."""
    return [
        str(write_shard(folder / f"{shard:03d}.tar", [
            (f"{place:04d}", {"png": png(1000 * shard + place, size), "cls": b"1" if place % 5 == 0 else b"0",
                              "txt": f"picture {place}".encode()})
            for place in range(per_shard)
        ]))
        for shard in range(num_shards)
    ]  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_corpus(tmp_path / "corpus")


def make_catalog(folder: Path) -> Catalog:
    """The three shards embedded by pixels."""
    made = Catalog(folder / "catalog")
    embed(made, write_corpus(folder / "corpus"), encoder="pixels", workers=1)
    return made


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path)


def rows(catalog: Catalog, sql: str, *parameters: object) -> list[tuple]:
    with catalog.reading() as connection:
        return connection.execute(sql, list(parameters)).fetchall()


def same_files(one: Path, other: Path) -> None:
    """Every file that is in one of the folders is in both, and the same."""
    found = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    assert found[0] == found[1]
    assert [path for path in found[0] if path.name not in TIMED and not filecmp.cmp(one / path, other / path, False)] == []


def members(catalog: Catalog, selection: str) -> list[int]:
    return [row[0] for row in rows(catalog, "select sample_id from members where selection = ? order by 1", selection)]


def add_scoring(catalog: Catalog, name: str, scores: dict[int, float | None]) -> None:
    """A scoring made by hand."""
    with catalog.writing() as connection:
        head = {"scoring": name, "metric": name, "source": None, "arguments": "{}",
                "num_samples": len(scores), "num_null": 0, "fingerprint": name, "run_id": 0}  # fmt: skip
        sets.insert(connection, "scorings", head)
        connection.executemany(
            "insert into scores values (?, ?, ?, null)", [[name, key, score] for key, score in scores.items()]
        )
        sets.refresh_sample_scores(connection)


@pytest.fixture(scope="session")
def data() -> Path:
    """Real images: ../shared/data beside the project, or the folder in CURATE_DATA."""
    folder = Path(os.environ.get("CURATE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (folder / "clothing").is_dir():
        pytest.skip(f"no real images at {folder}: set CURATE_DATA to the folder that has clothing/ and cifar10/")
    return folder
