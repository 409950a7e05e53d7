"""The work of `curate pack` for one shard: read images, and write them by webdataset's writer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from curate.execution.reporting import report_progress
from curate.formats.images import image_extension
from curate.formats.samples import iterate_samples
from curate.formats.tar import TarReader
from curate.stages.pack.sources import ImageFile, ParquetRows, TableColumns, split_row
from curate.storage import files
from curate.storage.atomic import atomic_write

_BATCH_ROWS = 64  # of a Parquet file: images are large


class ShardContent(NamedTuple):
    """One shard to write, by its number."""

    number: int
    content: list[ImageFile] | list[ParquetRows]


class PackedShard(NamedTuple):
    """What a shard holds: samples, and the bytes of the file. `problems` say what was left out."""

    filename: str
    num_samples: int
    num_bytes: int
    num_left_out: int
    problems: list[str]


class PackedSample(NamedTuple):
    """A sample to write; `data` None where its image cannot be had, for the reason `problem`."""

    key: str
    data: bytes | None
    problem: str
    label: str | None
    caption: str | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class WriteShard:
    """The task: write one shard into `folder`, in one step; one that exists is counted.

    The same content gives the same bytes: members have no time and no owner.
    """

    folder: str
    columns: TableColumns | None

    def __call__(self, shard: ShardContent) -> PackedShard:
        path = Path(self.folder) / f"{shard.number:05d}.tar"
        num_given = _count(shard.content)
        if path.exists():
            num_samples = _count_samples(path)
            report_progress(num_given, num_given)
            num_left_out = num_given - num_samples
            return PackedShard(path.name, num_samples, path.stat().st_size, num_left_out, [])
        from webdataset.writer import TarWriter  # type: ignore[import-untyped]

        num_samples, problems = 0, []
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            writer = TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0)
            for sample in self._iterate(shard.content):
                extension = image_extension(sample.data) if sample.data else None
                if extension is None or sample.data is None:
                    problems.append(sample.problem or f"{sample.key}: its bytes are no image")
                    continue
                members: dict[str, Any] = {"__key__": sample.key, extension: sample.data}
                if sample.label is not None:
                    members["cls"] = sample.label.encode()
                if sample.caption is not None:
                    members["txt"] = sample.caption.encode("utf-8", "replace")
                if sample.fields:
                    text = json.dumps(
                        sample.fields, ensure_ascii=False, sort_keys=True, default=str
                    )
                    members["json"] = text.encode("utf-8", "replace")
                writer.write(members)
                num_samples += 1
                report_progress(1, 1)
            writer.close()
        report_progress(len(problems), 0)
        return PackedShard(path.name, num_samples, path.stat().st_size, len(problems), problems[:3])

    def _iterate(self, content: list[ImageFile] | list[ParquetRows]) -> Iterator[PackedSample]:
        for part in content:
            if isinstance(part, ImageFile):
                data, problem = _read_file(part.path)
                yield PackedSample(part.key, data, problem, part.label, part.caption, part.fields)
            elif self.columns is not None:
                yield from _read_rows(part, self.columns)


def _count(content: list[ImageFile] | list[ParquetRows]) -> int:
    return sum(part.stop - part.start if isinstance(part, ParquetRows) else 1 for part in content)


def _count_samples(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in iterate_samples(TarReader(file, None, lambda name: False)))


def _read_file(path: str) -> tuple[bytes | None, str]:
    """The bytes of an image's file, or None and the reason."""
    if not path:
        return None, "a row without the path of an image"
    try:
        return files.read_bytes(path), ""
    except OSError as error:
        return None, f"{path}: {error.strerror or error}"


def _read_rows(rows: ParquetRows, columns: TableColumns) -> Iterator[PackedSample]:
    """The rows of a Parquet file as samples; only the row groups that have them are read."""
    import pyarrow.parquet as pq

    folder = Path(rows.path).parent
    with pq.ParquetFile(rows.path) as file:
        first = 0  # the number of the first row of the group at hand
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            if first < rows.stop and rows.start < stop:
                number = first
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        if rows.start <= number < rows.stop:
                            key = f"{rows.first_number + number - rows.start:09d}"
                            yield _read_row(row, key, folder, columns)
                        number += 1
            first = stop


def _read_row(row: dict[str, Any], key: str, folder: Path, columns: TableColumns) -> PackedSample:
    image = row.pop(columns.image)
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, "")
    problem = "" if data else f"{key}: a row without an image"
    if not data and path:
        data, problem = _read_file(str(folder / path))
    label, caption, fields = split_row(row, columns)
    fields = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
    if path:
        fields["path"] = path
    return PackedSample(key, data, problem, label, caption, fields)
