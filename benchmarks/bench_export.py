"""Writing pruned shards from 1 GB of 30 KB members: against a full copy of the input, tarfile and webdataset's writer."""

import shutil
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from bench_tar import write
from harness import Row, timed

from curate import shards
from curate.engine.copying import Output, Piece, Source, WriteShard
from curate.tar import TarReader

SHARDS, SAMPLES = 10, 3_200


def index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where the samples lie: offsets and lengths, as the catalog has them."""
    with path.open("rb") as stream:
        found = [(sample.offset, sample.length) for sample in shards.samples(TarReader(stream))]
    return tuple(np.array(found, np.int64).T)


def ours(
    sources: list[Path], kept: dict[Path, np.ndarray], places: dict[Path, tuple[np.ndarray, np.ndarray]], out: Path
) -> None:
    for path in sources:
        status = shards.stat(str(path))
        offsets, lengths = (column[kept[path]] for column in places[path])
        piece = Piece(Source(str(path), status.num_bytes, status.version, ""), offsets, lengths, {})
        WriteShard(out)(Output(path.name, [piece]))
        (out / path.name).unlink()


def copy(sources: list[Path], out: Path) -> None:
    """Read and write every byte; not the file system's own clones."""
    for path in sources:
        with path.open("rb") as source, (out / path.name).open("wb") as target:
            shutil.copyfileobj(source, target, 8 << 20)
        (out / path.name).unlink()


def by_tarfile(sources: list[Path], kept: dict[Path, np.ndarray], out: Path) -> None:
    for path in sources:
        chosen = {f"{number:08d}" for number in kept[path]}
        with tarfile.open(path) as source, tarfile.open(out / path.name, "w") as target:
            for member in source:
                if member.name.partition(".")[0] in chosen:
                    target.addfile(member, source.extractfile(member))
        (out / path.name).unlink()


def by_webdataset(sources: list[Path], kept: dict[Path, np.ndarray], out: Path) -> None:
    import webdataset

    for path in sources:
        chosen = {f"{number:08d}" for number in kept[path]}
        with webdataset.TarWriter(str(out / path.name)) as target:
            for sample in webdataset.WebDataset(str(path), shardshuffle=False):
                if sample["__key__"] in chosen:
                    target.write({name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")})
        (out / path.name).unlink()


def measure() -> list[Row]:
    rows = []
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [folder / f"{number:03d}.tar" for number in range(SHARDS)]
        for path in sources:
            write(path, 30_000, SAMPLES)
        places = {path: index(path) for path in sources}
        out = folder / "out"
        out.mkdir()
        for keep, least in ((0.8, 0.4), (0.2, None)):
            kept = {path: np.sort(generator.permutation(SAMPLES)[: round(keep * SAMPLES)]) for path in sources}
            found = timed({
                "ours": partial(ours, sources, kept, places, out), "limit": partial(copy, sources, out),
                "tarfile": partial(by_tarfile, sources, kept, out), "webdataset": partial(by_webdataset, sources, kept, out),
            })  # fmt: skip
            # As rates of what is written: the copy writes everything.
            rows.append(Row(f"export, keep {keep:g}", found["ours"], limit=keep * found["limit"], peer=found["tarfile"],
                            peer_name="tarfile", least_of_limit=least, least_of_peer=4.0))  # fmt: skip
            rows.append(Row(f"export, keep {keep:g}, webdataset", found["ours"], peer=found["webdataset"],
                            peer_name="webdataset's writer", least_of_peer=6.0))  # fmt: skip
    return rows
