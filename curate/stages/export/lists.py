"""A selection as one file: keys, a manifest in CSV, DataComp's subset of uids, or the index of
`curate.stream`."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import corpus_roles, find_unknown_shards
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError, OptionError
from curate.formatting import count_of
from curate.storage.atomic import atomic_write
from curate.streaming.selection_index import (
    IndexSettings,
    SelectionIndex,
    index_schema,
    to_selection_index,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHARDS, KEYS, DATACOMP, CSV, INDEX = "shards", "keys", "datacomp", "csv", "index"
FORMATS = (SHARDS, KEYS, DATACOMP, CSV, INDEX)
SUFFIXES = {
    KEYS: (".txt", ".parquet"),
    DATACOMP: (".npy",),
    CSV: (".csv",),
    INDEX: (".parquet",),
}
_BATCH_ROWS = 1 << 17
_UID_DIGITS = 32
# What a list is of: the members of a selection, or the other samples of the shards it knows.
_SOURCES = """
with listed as (
    select sample_id, weight, repeats from members where selection = $selection and not $complement
    union all
    select sample_id, null::float, null::integer from samples
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
# Shards are sorted by their ids, as everywhere; what curate.streaming.selection_index describes.
_INDEX_COLUMNS = """
select
    url, byte_offset as "offset", samples.num_bytes as length, key, weight::double as weight,
    repeats, member, image_checksum as checksum, shards.num_bytes as shard_bytes
from listed join samples using (sample_id) join shards using (shard_id)
order by samples.sample_id
"""


def check_list_path(out: str, list_format: str) -> None:
    """OptionError for a name that does not end as the format's files do, or a folder that does."""
    if list_format == SHARDS:
        _check_folder(out)
        return
    suffixes = SUFFIXES[list_format]
    if not out.endswith(suffixes):
        raise OptionError(
            f"--format {list_format} writes a file: name it *{' or *'.join(suffixes)}"
        )


def _check_folder(out: str) -> None:
    """OptionError for shards in what is named as a file."""
    formats = [name for name, suffixes in SUFFIXES.items() if out.endswith(suffixes)]
    if out.endswith((".tar", ".tar.gz", ".zip")):
        raise OptionError(f"OUT {out}: shards go into a folder, so name it without an ending")
    if formats:
        raise OptionError(
            f"OUT {out}: shards go into a folder; for a list give --format {' or '.join(formats)}"
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
    settings = _index_settings(catalog, selection, complement=complement)
    with catalog.reading(sandboxed=True) as connection, atomic_write(location) as temporary:
        parameters = _list_parameters(connection, selection, complement=complement)
        if list_format == DATACOMP:
            count = _write_uids(connection, parameters, temporary, uid)
        elif list_format == CSV:
            count = _write_csv(connection, parameters, temporary)
        elif list_format == INDEX:
            count = _write_index(connection, parameters, temporary, settings)
        elif location.endswith(".txt"):
            count = _write_keys(connection, parameters, temporary)
        else:
            count = _write_key_table(connection, parameters, temporary)
        if not complement:
            _check_complete(selection, count)
        return count


def load_selection_index(catalog: Catalog, selection: SelectionRecord) -> SelectionIndex:
    """What `--format index` writes, in memory. Raises CurateError."""
    import pyarrow as pa

    schema = index_schema(_index_settings(catalog, selection, complement=False))
    with catalog.reading(sandboxed=True) as connection:
        parameters = _list_parameters(connection, selection, complement=False)
        with _batches(connection, _INDEX_COLUMNS, parameters) as batches:
            # With texts that repeat held once, a batch at a time.
            tables = [_compact(pa.Table.from_batches([batch.cast(schema)])) for batch in batches]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    _check_complete(selection, len(table))
    return to_selection_index(table.replace_schema_metadata(schema.metadata), selection.selection)


def _compact(table: Any) -> Any:
    """The table with dictionaries in place of the columns url and member."""
    for name in ("url", "member"):
        position = table.column_names.index(name)
        table = table.set_column(position, name, table[name].dictionary_encode())
    return table


def _index_settings(
    catalog: Catalog, selection: SelectionRecord, *, complement: bool
) -> IndexSettings:
    roles = corpus_roles(catalog)
    fingerprint = f"{selection.fingerprint}{'-complement' if complement else ''}"
    settings = IndexSettings(selection=selection.selection, fingerprint=fingerprint)
    return settings._replace(key_rule=roles.key_rule) if roles else settings


def _list_parameters(
    connection: "DuckDBPyConnection", selection: SelectionRecord, *, complement: bool
) -> dict[str, Any]:
    return {
        "selection": selection.selection,
        "complement": complement,
        "unknown": sorted(find_unknown_shards(connection, selection)),
    }


def _check_complete(selection: SelectionRecord, count: int) -> None:
    num_lost = selection.num_samples - count
    if num_lost:
        raise CurateError(
            f"{num_lost:,} members of '{selection.selection}' are no longer in the corpus: "
            "select them anew"
        )


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


def _write_index(
    connection: "DuckDBPyConnection",
    parameters: dict[str, Any],
    path: Path,
    settings: IndexSettings,
) -> int:
    import pyarrow.parquet as pq

    schema = index_schema(settings)
    count = 0
    with (
        pq.ParquetWriter(path, schema) as writer,
        _batches(connection, _INDEX_COLUMNS, parameters) as batches,
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
