"""A selection as one file: keys, a manifest in CSV, or DataComp's subset of uids."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import find_unknown_shards
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError, OptionError
from curate.formatting import count_of
from curate.storage.atomic import atomic_write

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHARDS, KEYS, DATACOMP, CSV = "shards", "keys", "datacomp", "csv"
FORMATS = (SHARDS, KEYS, DATACOMP, CSV)
SUFFIXES = {KEYS: (".txt", ".parquet"), DATACOMP: (".npy",), CSV: (".csv",)}
_BATCH_ROWS = 1 << 17
_UID_DIGITS = 32
# What a list is of: the members of a selection, or the other samples of the shards it knows.
_SOURCES = """
with listed as (
    select sample_id from members where selection = $selection and not $complement
    union all
    select sample_id from samples
    where $complement
    and sample_id not in (select sample_id from members where selection = $selection)
    and not list_contains($unknown, shard_id)
)
"""
_CSV_COLUMNS = """
select
    key || '.' || member as path, samples.label, samples.caption, samples.key, url,
    samples.sample_id, samples.width, samples.height, samples.byte_offset, samples.num_bytes
from listed join samples using (sample_id) join shards using (shard_id)
order by samples.sample_id
"""


def check_list_path(out: str, list_format: str) -> None:
    """OptionError for a name that does not end as the format's files do."""
    suffixes = SUFFIXES[list_format]
    if not out.endswith(suffixes):
        raise OptionError(
            f"--format {list_format} writes a file: name it *{' or *'.join(suffixes)}"
        )


def write_list(
    catalog: Catalog,
    selection: SelectionRecord,
    location: str,
    list_format: str,
    *,
    complement: bool,
    uid: str,
) -> int:
    """Write the file in one step; returns how many samples it lists.

    `uid` is the column of sample_scores that has the uids for DataComp. Raises CurateError.
    """
    with catalog.reading(sandboxed=True) as connection:
        parameters = {
            "selection": selection.selection,
            "complement": complement,
            "unknown": sorted(find_unknown_shards(connection, selection)),
        }
        with atomic_write(location) as temporary:
            if list_format == DATACOMP:
                return _write_uids(connection, parameters, temporary, uid)
            if list_format == CSV:
                return _write_csv(connection, parameters, temporary)
            if location.endswith(".txt"):
                return _write_keys(connection, parameters, temporary)
            return _write_key_table(connection, parameters, temporary)


@contextlib.contextmanager
def _batches(
    connection: "DuckDBPyConnection", sql: str, parameters: dict[str, Any]
) -> Iterator[Any]:
    """Record batches of a query over `listed`.

    Closed at the block's end, also at a bad one: an open one would keep the database open, and the
    run could not be recorded as failed.
    """
    reader: Any = connection.sql(_SOURCES + sql, params=parameters).to_arrow_reader(_BATCH_ROWS)
    try:
        yield reader
    finally:
        reader.close()


def _write_keys(connection: "DuckDBPyConnection", parameters: dict[str, Any], path: Path) -> int:
    """A key a line, in tar order. Raises CurateError for keys that need more than a line."""
    sql = "select key from listed join samples using (sample_id) order by sample_id"
    count = 0
    with (
        path.open("w", encoding="utf-8", newline="\n") as file,
        _batches(connection, sql, parameters) as batches,
    ):
        for batch in batches:
            keys = batch.column(0).to_pylist()
            broken = next((key for key in keys if "\n" in key), None)
            if broken is not None:
                raise CurateError(f"the key {broken!r} is more than a line: write *.parquet")
            file.writelines(f"{key}\n" for key in keys)
            count += len(keys)
    return count


def _write_key_table(
    connection: "DuckDBPyConnection", parameters: dict[str, Any], path: Path
) -> int:
    """Parquet with url, key and sample_id, in tar order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sql = (
        "select url, key, sample_id from listed join samples using (sample_id) "
        "join shards using (shard_id) order by sample_id"
    )
    schema = pa.schema({"url": pa.string(), "key": pa.string(), "sample_id": pa.int64()})
    count = 0
    with (
        pq.ParquetWriter(path, schema) as writer,
        _batches(connection, sql, parameters) as batches,
    ):
        for batch in batches:
            writer.write_batch(batch.cast(schema))
            count += len(batch)
    return count


def _write_csv(connection: "DuckDBPyConnection", parameters: dict[str, Any], path: Path) -> int:
    """Path, label, caption, and where the sample is; `path` is where tar puts the image."""
    count = 0
    with (
        path.open("w", encoding="utf-8", newline="") as file,
        _batches(connection, _CSV_COLUMNS, parameters) as batches,
    ):
        writer = csv.writer(file)
        for batch in batches:
            if not count:
                writer.writerow(batch.schema.names)
            columns = [column.to_pylist() for column in batch.columns]
            if None in columns[0]:
                raise CurateError(
                    "the catalog does not say which members are images, because an older version "
                    "embedded its shards: embed them into a new catalog (-c NEW)"
                )
            writer.writerows(zip(*columns, strict=True))
            count += len(batch)
    return count


def _write_uids(
    connection: "DuckDBPyConnection", parameters: dict[str, Any], path: Path, uid: str
) -> int:
    """Each uid, 128 bits, as two unsigned numbers, high bits first; sorted, as DataComp reads."""
    import duckdb

    sql = f"select {quote_identifier(uid)}::text from listed join sample_scores using (sample_id)"
    try:
        with _batches(connection, sql, parameters) as batches:
            chunks = [_parse_uids(batch.column(0).to_pylist(), uid) for batch in batches]
    except duckdb.BinderException as error:
        raise CurateError(
            f"--uid {uid}: sample_scores has no such column; "
            "columns: `curate query 'describe sample_scores'`"
        ) from error
    uids = np.sort(np.concatenate(chunks)) if chunks else np.empty(0, "u8,u8")
    with path.open("wb") as file:
        np.save(file, uids, allow_pickle=False)
    return len(uids)


def _parse_uids(texts: list[str | None], column: str) -> np.ndarray:
    """Texts of 32 hexadecimal digits as pairs [n] of uint64. Raises CurateError for others."""
    try:
        joined = bytes.fromhex("".join(map(_check_uid, texts)))
    except ValueError as error:
        wrong = [text for text in texts if not _is_uid(text)]
        raise CurateError(
            f"{count_of(len(wrong), 'sample')} of {len(texts):,} have no uid in '{column}', "
            f"such as {wrong[0]!r}: name the column that has 32 hexadecimal digits with --uid"
        ) from error
    pairs = np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(pairs).view("u8,u8").reshape(-1)


def _check_uid(text: str | None) -> str:
    if text is None or len(text) != _UID_DIGITS:
        raise ValueError(text)
    return text


def _is_uid(text: str | None) -> bool:
    try:
        return len(bytes.fromhex(_check_uid(text))) * 2 == _UID_DIGITS
    except ValueError:
        return False
