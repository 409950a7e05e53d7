"""Where the images to pack are: class folders, tables with paths, Parquet files with images."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curate.errors import CurateError, OptionError
from curate.formats.member_roles import EXTENSIONS
from curate.storage.checksums import file_checksum

if TYPE_CHECKING:
    import duckdb

IMAGE_COLUMNS = ("image", "file_name", "filepath", "filename", "image_path", "path")
LABEL_COLUMNS = ("label", "class", "cls", "target", "fine_label")
CAPTION_COLUMNS = ("caption", "text", "txt", "title")
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_READERS = {
    ".csv": "read_csv({}, sample_size = -1)",
    ".tsv": "read_csv({}, sample_size = -1, delim = '\t')",
    ".jsonl": "read_json({}, format = 'newline_delimited')",
    ".parquet": "read_parquet({}, hive_partitioning = false)",
}


class ImageFile(NamedTuple):
    """A sample whose image is a file; the texts become members of the sample."""

    key: str
    path: str
    label: str | None
    caption: str | None
    fields: dict[str, Any]


class ParquetRows(NamedTuple):
    """Rows [start, stop) of a Parquet file with images; `first_number` counts rows of all files."""

    path: str
    start: int
    stop: int
    first_number: int


class TableColumns(NamedTuple):
    """The columns of a table with images.

    `classes` are the numbers of labels that are texts, `class_names` the names of labels that are
    numbers, where they are known.
    """

    image: str
    label: str | None
    caption: str | None
    classes: dict[str, int]
    class_names: tuple[str, ...] = ()


class Source(NamedTuple):
    """What is packed: its number of samples, its fingerprint, and shards one after the other.

    A shard is a list of files, or of rows of Parquet files with `columns`.
    """

    num_samples: int
    fingerprint: str
    shards: Iterator[list[ImageFile] | list[ParquetRows]]
    columns: TableColumns | None


class ColumnNames(NamedTuple):
    """The columns that the user named."""

    image: str | None
    label: str | None
    caption: str | None


def open_source(source: str, names: ColumnNames, per_shard: int) -> Source:
    """What there is to pack. Raises CurateError for a source that is none, or is ambiguous."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        return _open_table([path], names, per_shard)
    if path.is_dir():
        return _open_folder(path, names, per_shard)
    matches = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not matches:
        raise CurateError(
            f"nothing at '{source}': give a folder of images, or a table {', '.join(_TABLES)}"
        )
    return _open_table(matches, names, per_shard)


def _open_folder(folder: Path, names: ColumnNames, per_shard: int) -> Source:
    """A folder with a table of its images, with Parquet files alone, or with images."""
    tables = [folder / name for name in _METADATA_NAMES if (folder / name).is_file()]
    if not tables:
        tables = [
            path
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in (".csv", ".tsv", ".jsonl") and path.is_file()
        ]
    if len(tables) > 1:
        shown = ", ".join(path.name for path in tables)
        raise CurateError(f"'{folder}' has several tables ({shown}): name the one to pack")
    if tables:
        return _open_table(tables, names, per_shard)
    paths = list(_walk(folder))
    parquet_files = [path for path in paths if path.suffix.lower() == ".parquet"]
    images = [path for path in paths if path.suffix.lower().removeprefix(".") in EXTENSIONS]
    if parquet_files and not images:
        return _open_table(parquet_files, names, per_shard)
    if any(names):
        raise OptionError(
            "--image, --label and --caption name columns, but this is no table: leave them out"
        )
    if not images:
        raise CurateError(
            f"'{folder}' has no images ({', '.join(EXTENSIONS)}) and no table: check the path"
        )
    return _open_classes(folder, images, per_shard)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, without hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent) / name


def _open_classes(folder: Path, images: list[Path], per_shard: int) -> Source:
    """Images in a folder for each class, as torchvision's ImageFolder; or in none at all."""
    relative = [path.relative_to(folder) for path in images]
    classes = sorted({path.parts[0] for path in relative if len(path.parts) > 1})
    if classes and {name.lower() for name in classes} <= _SPLITS:
        raise CurateError(
            f"'{folder}' holds splits ({', '.join(classes)}), not classes: pack each by itself, "
            f"such as `curate pack {folder / classes[0]} OUT`"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    keys = _unique_keys(relative)
    samples = []
    for path, key in zip(relative, keys, strict=True):
        fields: dict[str, Any] = {"path": _to_unicode(str(path))}
        label = None
        if len(path.parts) > 1:
            fields["class"] = _to_unicode(path.parts[0])
            label = str(numbers[path.parts[0]])
        samples.append(ImageFile(key, str(folder / path), label, None, fields))
    digest = hashlib.sha256()
    for path, image in zip(relative, images, strict=True):
        digest.update(f"{os.fsencode(path)!r} {image.stat().st_size}\n".encode())
    # Shuffled by a hash, so that no shard holds one class alone: loaders shuffle little.
    samples.sort(key=lambda sample: hashlib.sha256(sample.key.encode()).digest())
    shards = (samples[start : start + per_shard] for start in range(0, len(samples), per_shard))
    return Source(len(samples), digest.hexdigest(), shards, None)


def _unique_keys(paths: list[Path]) -> list[str]:
    """A key for each path: without the ending, and without dots, at which a key would end.

    Where two have the same, as a.jpg and a.png, the ending is part of the key.
    """
    plain = [_to_key(path.with_suffix("")) for path in paths]
    counts = Counter(plain)
    keys = [
        key if counts[key] == 1 else f"{key}_{path.suffix.removeprefix('.')}"
        for key, path in zip(plain, paths, strict=True)
    ]
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise CurateError(f"several images would have the key '{repeated[0]}': rename one of them")
    return keys


def _to_key(path: Path) -> str:
    return _to_unicode(str(path.with_name(path.name.replace(".", "_"))))


def _to_unicode(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _open_table(paths: list[Path], names: ColumnNames, per_shard: int) -> Source:
    """Tables with the images in a column, or with their paths."""
    import duckdb

    suffix = paths[0].suffix.lower()
    if suffix not in _READERS or any(path.suffix.lower() != suffix for path in paths):
        raise CurateError(f"'{paths[0]}' is no table: give files {', '.join(_TABLES)}")
    splits = sorted({re.sub(r"-\d+-of-\d+$", "", path.stem) for path in paths})
    if len(splits) > 1 and {split.lower() for split in splits} & _SPLITS:
        raise CurateError(
            f"these are several splits ({', '.join(splits)}): pack each by itself, such as "
            f"`curate pack '{paths[0].parent}/{splits[0]}-*{suffix}' OUT`"
        )
    connection = duckdb.connect()
    connection.execute("set enable_progress_bar = false")
    relation = _READERS[suffix].format([str(path) for path in paths])
    try:
        described = connection.execute(f"describe from {relation}").fetchall()
        types = {row[0]: row[1] for row in described}
        columns = _choose_columns(types, names)
        holds_images = types[columns.image] == "BLOB" or types[columns.image].startswith("STRUCT")
        if columns.label is not None:
            classes = _class_numbers(connection, relation, columns.label, types[columns.label])
            columns = columns._replace(classes=classes)
        if holds_images:
            connection.close()
            return _open_parquet(paths, columns, per_shard)
        return _open_paths(connection, relation, paths, columns, per_shard)
    except duckdb.Error as error:
        raise CurateError(f"cannot read '{paths[0]}': {str(error).splitlines()[0]}") from error


def _choose_columns(types: dict[str, str], names: ColumnNames) -> TableColumns:
    columns: list[str | None] = []
    candidates = (IMAGE_COLUMNS, LABEL_COLUMNS, CAPTION_COLUMNS)
    for flag, name, usual in zip(ColumnNames._fields, names, candidates, strict=True):
        if name is not None and name not in types:
            raise OptionError(f"--{flag} {name}: the table has {', '.join(types)}")
        columns.append(name or next((column for column in usual if column in types), None))
    image, label, caption = columns
    if image is None:
        raise OptionError(
            "the table has no column that is known to hold images or their paths: name it with "
            f"--image: {', '.join(types)}"
        )
    return TableColumns(image, label, caption, {})


def _class_numbers(
    connection: "duckdb.DuckDBPyConnection", relation: str, label: str, sql_type: str
) -> dict[str, int]:
    """Labels that are texts by their number, in order; none for labels that are numbers."""
    if "INT" in sql_type:
        return {}
    column = _quote(label)
    rows = connection.execute(
        f"select distinct {column}::text from {relation} where {column} is not null"
    ).fetchall()
    return {name: number for number, name in enumerate(sorted(name for (name,) in rows))}


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _open_paths(
    connection: "duckdb.DuckDBPyConnection",
    relation: str,
    paths: list[Path],
    columns: TableColumns,
    per_shard: int,
) -> Source:
    """Images that are files, named by a column, relative to the table's folder or absolute."""
    ((num_rows,),) = connection.execute(f"select count(*) from {relation}").fetchall()

    def iterate_shards() -> Iterator[list[ImageFile]]:
        cursor = connection.execute(f"from {relation}")
        names = [column[0] for column in cursor.description or []]
        number = 0
        while rows := cursor.fetchmany(per_shard):
            shard = []
            for row in rows:
                values = dict(zip(names, row, strict=True))
                shard.append(_read_row(values, number, paths[0].parent, columns))
                number += 1
            yield shard

    checksums = " ".join(file_checksum(path) for path in paths)
    return Source(num_rows, _fingerprint(checksums, columns), iterate_shards(), columns)


def _read_row(
    values: dict[str, Any], number: int, folder: Path, columns: TableColumns
) -> ImageFile:
    path = values.pop(columns.image)
    label, caption, fields = split_row(values, columns)
    return ImageFile(
        f"{number:09d}",
        "" if path is None else str(folder / str(path)),
        label,
        caption,
        {"path": None if path is None else str(path), **fields},
    )


def split_row(
    values: dict[str, Any], columns: TableColumns
) -> tuple[str | None, str | None, dict[str, Any]]:
    """The label, the caption and the other values of a row, without its image.

    A label that is a text becomes its number, as loaders read .cls; the text stays a field.
    """
    fields = dict(values)
    label = caption = None
    if columns.label is not None and (value := fields.get(columns.label)) is not None:
        label = str(columns.classes.get(str(value), value))
        if not columns.classes:
            del fields[columns.label]
        if label.isdecimal() and int(label) < len(columns.class_names):
            fields["class"] = columns.class_names[int(label)]
    if columns.caption is not None and (value := fields.pop(columns.caption, None)) is not None:
        caption = str(value)
    return label, caption, {key: value for key, value in fields.items() if value is not None}


def _open_parquet(paths: list[Path], columns: TableColumns, per_shard: int) -> Source:
    """Images in a column of Parquet files: bytes, or as Hugging Face has them with their paths."""
    import pyarrow.parquet as pq

    counts = [pq.read_metadata(path).num_rows for path in paths]
    columns = columns._replace(class_names=_read_class_names(paths[0], columns.label))

    def iterate_shards() -> Iterator[list[ParquetRows]]:
        shard: list[ParquetRows] = []
        remaining, number = per_shard, 0
        for path, count in zip(paths, counts, strict=True):
            start = 0
            while start < count:
                stop = min(start + remaining, count)
                shard.append(ParquetRows(str(path), start, stop, number))
                remaining, number, start = remaining - (stop - start), number + stop - start, stop
                if not remaining:
                    yield shard
                    shard, remaining = [], per_shard
        if shard:
            yield shard

    sizes = [[path.name, path.stat().st_size] for path in paths]
    return Source(sum(counts), _fingerprint(json.dumps(sizes), columns), iterate_shards(), columns)


def _read_class_names(path: Path, label: str | None) -> tuple[str, ...]:
    """The names of the classes, where the Parquet file says what Hugging Face's library wrote."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _fingerprint(content: str, columns: TableColumns) -> str:
    return hashlib.sha256(f"{content}\n{columns}".encode()).hexdigest()
