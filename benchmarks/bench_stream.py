"""Reading a selection of photos: curate.stream from the corpus, against curate.kept in webdataset,
and against webdataset on exported shards; bytes read for the bytes kept."""

import os
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import webdataset
from harness import Row, time_variants

import curate

DATA = Path(os.environ.get("CURATE_DATA", "../shared/data"))
SHARDS = "clothing/clothing-train-*.tar"
KEEPS = (0.1, 0.5, 0.8)


class Selected(NamedTuple):
    """A selection in three forms: its name, its index, and its shards as an export."""

    name: str
    index: Path
    exported: list[str]


def read_all(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of all images."""
    return sum(len(sample["jpg"]) for sample in samples)


def read_kept(catalog: Path, shards: list[str], selected: Selected) -> int:
    keep = curate.kept(catalog, selected.name)
    return read_all(webdataset.WebDataset(shards, shardshuffle=False).select(keep))


def read_exported(selected: Selected) -> int:
    return read_all(webdataset.WebDataset(selected.exported, shardshuffle=False))


def read_stream(selected: Selected, shuffle: int) -> int:
    return read_all(curate.stream(selected.index, shuffle=shuffle))


def make_selection(catalog: Path, folder: Path, keep: float) -> Selected:
    name = curate.select(catalog, keep=keep, strategy="random", name=f"keep-{keep:g}")
    index = Path(curate.export(catalog, name, folder / f"{name}.parquet", format="index"))
    exported = Path(curate.export(catalog, name, folder / name))
    return Selected(name, index, sorted(map(str, exported.glob("*.tar"))))


def measure() -> list[Row]:
    rows = []
    shards = sorted(map(str, DATA.resolve().glob(SHARDS)))
    if not shards:
        raise SystemExit(f"no photos at {DATA / SHARDS}: set CURATE_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalog = folder / "catalog"
        curate.embed(catalog, shards, encoder="pixels@8", workers=1)
        for keep in KEEPS:
            selected = make_selection(catalog, folder, keep)
            seconds = time_variants(
                {
                    "stream": partial(read_stream, selected, 0),
                    "shuffled": partial(read_stream, selected, 1000),
                    "kept": partial(read_kept, catalog, shards, selected),
                    "exported": partial(read_exported, selected),
                }
            )
            rows.append(
                Row(
                    f"stream, keep {keep:g}",
                    seconds["stream"],
                    peer=seconds["kept"],
                    peer_name="curate.kept",
                    least_of_peer=10.0 if keep == KEEPS[0] else None,
                )
            )
            rows += [
                Row(
                    f"{variant}, keep {keep:g}, exported",
                    seconds[variant],
                    peer=seconds["exported"],
                    peer_name="webdataset on exported shards",
                    least_of_peer=0.9,
                )
                for variant in ("stream", "shuffled")
            ]
            stream = curate.stream(selected.index)
            rows.append(
                Row(
                    f"stream, keep {keep:g}, bytes read",
                    stream.num_bytes / 1e6,
                    limit=stream.num_kept_bytes / 1e6,
                    least_of_limit=round(1 / 1.2, 3),
                    unit="MB",
                )
            )
    return rows
