"""`curate verify --forgotten RECEIPT`: nothing of forgotten samples is in any file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.sql import quote_identifier
from curate.progress import progress_bar
from curate.stages.forget.patterns import find_patterns
from curate.stages.forget.receipt import Receipt
from curate.stages.forget.stage import load_plan
from curate.storage import files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

REMEDY = "`curate forget` again with the same keys removes it"


class Remnant(NamedTuple):
    """Something that is still there: where, and what."""

    subject: str
    problem: str


def find_remnants(catalog: Catalog, receipt: Receipt) -> Iterator[Remnant]:
    """What is left of the samples: in tables, in Parquet by their ids, in any file by bytes.

    The files are those of the catalog, and of its exports and lists; with --rewrite-shards also the
    shards. Raises OSError.
    """
    if load_plan(catalog) is not None or not receipt.complete:
        yield Remnant(str(catalog.path), "a forgetting is not finished")
    ids = np.array([target.sample_id for target in receipt.samples], np.int64)
    with catalog.reading() as connection:
        yield from _search_tables(connection, receipt)
        paths = connection.execute(
            "select path from exports union select json_extract_string(arguments, '$.path') "
            "from runs where stage = 'export'"
        ).fetchall()
    locations = list(_list_files(str(catalog.path)))
    if catalog.files_root != str(catalog.path):
        locations += _list_files(catalog.files_root)
    for (path,) in paths:
        locations += _list_files(path) if path else []
    if receipt.rewrite_shards:
        locations += [url for url in receipt.shard_bytes if files.is_file(url)]
    patterns = np.array(sorted(receipt.patterns), np.uint64)
    locations = list(dict.fromkeys(locations))
    with progress_bar("search", len(locations), "files") as advance:
        for location in locations:
            yield from _search_file(location, ids, patterns, receipt.searched_keys)
            advance(1, 1)


def _search_file(
    location: str, ids: np.ndarray, patterns: np.ndarray, searched_keys: list[str]
) -> Iterator[Remnant]:
    if location.endswith(".parquet"):
        yield from _search_parquet(location, ids, set(searched_keys))
    with files.open_binary(location, sequential=True) as file:
        if len(patterns) and find_patterns(file, patterns):
            yield Remnant(location, "it has bytes of a forgotten image or vector")
    for key in searched_keys:
        with files.open_binary(location, sequential=True) as file:
            if _contains(file, key.encode("utf-8", "surrogateescape")):
                yield Remnant(location, "it has the key of a forgotten sample")
                break


def _list_files(location: str) -> Iterator[str]:
    """The files of a folder and of those below, or the file itself."""
    if files.is_url(location):
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(location)
        yield from map(filesystem.unstrip_protocol, filesystem.find(path))
        return
    path = Path(location)
    candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
    yield from (str(candidate) for candidate in candidates if candidate.is_file())


def _search_tables(connection: "DuckDBPyConnection", receipt: Receipt) -> Iterator[Remnant]:
    ids: list[object] = [target.sample_id for target in receipt.samples]
    columns = connection.execute(
        "select table_name, column_name, data_type from duckdb_columns() "
        "join duckdb_tables() using (table_name) order by all"
    ).fetchall()
    for table, column, data_type in columns:
        name, table_name = quote_identifier(column), quote_identifier(table)
        if column == "sample_id":
            condition, values = f"{name} in (select unnest($1::bigint[]))", ids
        elif data_type in ("VARCHAR", "JSON") and receipt.searched_keys:
            condition = (
                f"exists (select 1 from (select unnest($1::text[]) as searched) "
                f"where contains({name}::text, searched))"
            )
            values = [*receipt.searched_keys]
        else:
            continue
        ((count,),) = connection.execute(
            f"select count(*) from {table_name} where {condition}", [values]
        ).fetchall()
        if count:
            yield Remnant(f"table {table}", f"{count:,} rows of '{column}' name forgotten samples")
    ((num_free,),) = connection.execute(
        "select sum(free_blocks) from pragma_database_size()"
    ).fetchall()
    if num_free:
        yield Remnant("the database", f"{num_free:,} free blocks may hold what was deleted")


def _search_parquet(location: str, ids: np.ndarray, keys: set[str]) -> Iterator[Remnant]:
    """By decoded columns, because Parquet may be compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_binary(location) as file:
            parquet = pq.ParquetFile(file)
            names = set(parquet.schema_arrow.names)
            wanted = [name for name in ("sample_id", "key", "exported_key") if name in names]
            for batch in parquet.iter_batches(columns=wanted) if wanted else ():
                if "sample_id" in wanted and np.isin(batch["sample_id"].to_numpy(), ids).any():
                    yield Remnant(location, "it has rows of forgotten samples")
                    return
                texts = [name for name in wanted if name != "sample_id"]
                if any(keys.intersection(batch[name].to_pylist()) for name in texts):
                    yield Remnant(location, "it has the key of a forgotten sample")
                    return
    except pa.ArrowException as error:
        yield Remnant(location, f"it cannot be read ({type(error).__name__})")


def _contains(file: BinaryIO, text: bytes) -> bool:
    rest = b""
    while data := file.read(1 << 22):
        if text in rest + data:
            return True
        rest = data[-len(text) :]
    return False
