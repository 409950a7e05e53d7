"""`curate pack`: images in folders or tables become shards, by webdataset's own writer."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from curate.errors import CurateError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formatting import count_of, format_bytes
from curate.options import Option, Workers, verb
from curate.progress import log, progress_bar
from curate.stages.pack.sources import ColumnNames, open_source
from curate.stages.pack.worker import ShardContent, WriteShard
from curate.storage.atomic import atomic_write
from curate.storage.locks import LOCK_NAME, TEMPORARY_PREFIX, lock_folder, remove_temporary_files

MANIFEST_NAME = "pack.json"
SIZES_NAME = "sizes.json"
_MAX_SHOWN = 5


@verb()
def pack(
    source: Annotated[
        str,
        Option(
            "Folder of class folders or with a table of its images, or a table "
            "(.csv, .tsv, .jsonl, .parquet, patterns too).",
            metavar="FOLDER|TABLE",
        ),
    ],
    out: Annotated[str | Path, Option("Folder to write.", metavar="OUT")],
    *,
    image: Annotated[
        str | None,
        Option(
            "Column with the images, or with their paths.",
            metavar="COLUMN",
            default="image, file_name, filepath …",
        ),
    ] = None,
    label: Annotated[
        str | None,
        Option("Column with the labels.", metavar="COLUMN", default="label, class, cls …"),
    ] = None,
    caption: Annotated[
        str | None,
        Option("Column with the captions.", metavar="COLUMN", default="caption, text, title …"),
    ] = None,
    per_shard: Annotated[int, Option("Samples per shard.", minimum=1)] = 1_000,
    workers: Workers = 1,
) -> str:
    """Write images as shards 00000.tar, 00001.tar …, and return the folder.

    A sample has its image's bytes as they are, the label's number (.cls), the caption (.txt) and
    all else that is known of it (.json), such as its path and the name of its class. Rows of a
    table keep their order; images of class folders are shuffled by a hash of their paths. The same
    source gives the same bytes, a run that was stopped goes on, and sizes.json, written last, has
    the number of samples of each shard. Images that are missing or are none are left out, and
    counted. Raises CurateError for a folder that holds something else.
    """
    images = open_source(source, ColumnNames(image, label, caption), per_shard)
    folder = Path(out).expanduser().absolute()
    manifest = {"source": source, "per_shard": per_shard, "fingerprint": images.fingerprint}
    _check_folder(folder, manifest)
    if (folder / SIZES_NAME).exists():
        log.info("nothing to do: %s holds these shards already", folder)
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(folder):
            remove_temporary_files(folder)
            _write_json(folder / MANIFEST_NAME, manifest)
            shards = (ShardContent(number, part) for number, part in enumerate(images.shards))
            sizes: dict[str, int] = {}
            num_bytes, num_left_out, problems = 0, 0, list[str]()
            with progress_bar("pack", images.num_samples) as advance:
                for _, packed in engine.map_or_raise(
                    WriteShard(str(folder), images.columns),
                    shards,
                    Resources(workers),
                    advance=advance,
                    describe_item=lambda shard: f"cannot write shard {shard.number:05d}.tar",
                    in_order=True,
                ):
                    sizes[packed.filename] = packed.num_samples
                    num_bytes += packed.num_bytes
                    num_left_out += packed.num_left_out
                    problems += packed.problems[: _MAX_SHOWN - len(problems)]
            _write_json(folder / MANIFEST_NAME, {**manifest, "left_out": num_left_out})
            _write_json(folder / SIZES_NAME, sizes)
    except BlockingIOError as error:
        raise CurateError(
            f"process {error} is packing into '{folder}': wait until it ends, or stop it"
        ) from error
    for problem in problems:
        log.warning("left out: %s", problem)
    log.info(
        "packed %s into %s, %s%s",
        count_of(sum(sizes.values()), "sample"),
        count_of(len(sizes), "shard"),
        format_bytes(num_bytes),
        f"; {num_left_out:,} left out" if num_left_out else "",
    )
    return str(folder)


def num_left_out(folder: str | Path) -> int:
    """How many images a finished folder lacks because they are missing or are none."""
    manifest = json.loads((Path(folder) / MANIFEST_NAME).read_text(encoding="utf-8"))
    return int(manifest.get("left_out", 0))


def _check_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """CurateError for a folder with anything but shards of this very source."""
    try:
        names = [
            name
            for name in os.listdir(folder)
            if name != LOCK_NAME and not name.startswith(TEMPORARY_PREFIX)
        ]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise CurateError(f"'{folder}' is a file: name a folder to write") from error
    if not names:
        return
    try:
        existing = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CurateError(f"'{folder}' holds other files: choose a new folder") from error
    for name in ("per_shard", "fingerprint"):
        if existing.get(name) != manifest[name]:
            raise CurateError(
                f"'{folder}' holds shards that were packed from other files or with other "
                "options: choose a new folder, or remove it"
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
