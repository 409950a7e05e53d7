"""The index of a selection: one Parquet file that says where each of its samples lies.

A machine that trains needs this file, the shards, pyarrow, fsspec and NumPy; no database. It has a
row a sample, in the order of the tars, shard after shard:

- url: the shard
- offset, length: the sample's bytes in it, tar headers included
- key: the sample's name, as in the catalog
- weight: null where the selection has none
- repeats: how often the sample comes in an epoch; null where the selection has no repeats
- member, checksum: the image's extension in the tar, and the XXH3 (64 bits) of its bytes; null
  where an early version embedded the shard
- shard_bytes: the size of the whole shard
"""

import json
from typing import Any, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.formats.samples import FIRST_DOT
from curate.storage import files

_METADATA_KEY = b"curate"
_REQUIRED = ("url", "offset", "length", "key")
_TEXT_COLUMNS = ("url", "member")  # few different values, which are held once


class IndexSettings(NamedTuple):
    """What the file says of the whole selection: its name, its fingerprint, where keys end."""

    selection: str = ""
    fingerprint: str = ""
    key_rule: str = FIRST_DOT


class SelectionIndex(NamedTuple):
    """Where the samples of a selection lie, in the order of the tars.

    `urls` are the shards. Of n samples: the shard's number (`shards`, int32), `offsets` and
    `lengths` in bytes (int64), `keys` (an Arrow array of text), `weights` (float64) or None,
    `repeats` (int64, how often it comes in an epoch) or None, `extensions` (an Arrow array of
    text, null where it is unknown) and `checksums` (uint64) of the images. `shard_bytes` int64 is
    the size of each shard, or -1.
    """

    settings: IndexSettings
    urls: list[str]
    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    keys: Any
    weights: np.ndarray | None
    repeats: np.ndarray | None
    extensions: Any
    checksums: np.ndarray
    shard_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def num_presentations(self) -> int:
        """The samples of an epoch, those that repeat as often as they come."""
        return len(self) if self.repeats is None else int(self.repeats.sum())


def index_schema(settings: IndexSettings) -> Any:
    """The columns of the file, and what it says of the selection: a pyarrow schema."""
    import pyarrow as pa

    columns = {
        "url": pa.string(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "key": pa.string(),
        "weight": pa.float64(),
        "repeats": pa.int32(),
        "member": pa.string(),
        "checksum": pa.uint64(),
        "shard_bytes": pa.int64(),
    }
    metadata = {_METADATA_KEY: json.dumps(settings._asdict()).encode()}
    return pa.schema(columns, metadata=metadata)


def read_selection_index(location: str) -> SelectionIndex:
    """Read the file, of this machine or at a URL. Raises CurateError for what is no index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_binary(location) as file:
            table = pq.read_table(file, read_dictionary=_TEXT_COLUMNS)
    except OSError as error:
        raise CurateError(
            f"'{location}' cannot be read ({error.strerror or error}): make an index with "
            "`curate export SELECTION index.parquet --format index`"
        ) from error
    except pa.ArrowException as error:
        raise _no_index(location, "it is no Parquet file, or a damaged one") from error
    return to_selection_index(table, location)


def to_selection_index(table: Any, location: str) -> SelectionIndex:
    """From a pyarrow table with the file's columns. Raises CurateError for what is no index."""
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        raise _no_index(location, f"it has no column '{missing[0]}'")
    urls, shards = _encode(table, "url")
    offsets, lengths = _integers(table, "offset", 0), _integers(table, "length", 0)
    for name in _REQUIRED:
        if table[name].null_count:
            raise _no_index(location, f"the column '{name}' has nulls")
    is_later = (np.diff(shards) != 0) | (np.diff(offsets) > 0)
    num_runs = 1 + np.count_nonzero(np.diff(shards)) if len(shards) else 0
    if not is_later.all() or num_runs != len(np.unique(shards)) or (lengths <= 0).any():
        raise _no_index(location, "its rows are not sorted by shard and offset")
    shard_bytes = np.full(len(urls), -1, np.int64)
    shard_bytes[shards] = _integers(table, "shard_bytes", -1)
    weights = None
    if "weight" in table.column_names and table["weight"].null_count < len(table):
        weights = table["weight"].fill_null(1.0).to_numpy().astype(np.float64)
    repeats = None
    if "repeats" in table.column_names and table["repeats"].null_count < len(table):
        repeats = _integers(table, "repeats", 1)
        if (repeats < 1).any():
            raise _no_index(location, "its column 'repeats' has numbers below 1")
    return SelectionIndex(
        settings=_read_settings(table.schema.metadata),
        urls=urls,
        shards=shards,
        offsets=offsets,
        lengths=lengths,
        keys=table["key"].combine_chunks(),
        weights=weights,
        repeats=repeats,
        extensions=_read_extensions(table),
        checksums=_integers(table, "checksum", 0, np.uint64),
        shard_bytes=shard_bytes,
    )


def _encode(table: Any, name: str) -> tuple[list[str], np.ndarray]:
    """The different texts of a column, and for each row the number of its own: int32 [n]."""
    import pyarrow as pa

    column = table[name]
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return [], np.empty(0, np.int32)
    indices = [chunk.indices.fill_null(0).to_numpy() for chunk in chunks]
    return chunks[0].dictionary.to_pylist(), np.concatenate(indices).astype(np.int32)


def _integers(table: Any, name: str, default: int, dtype: Any = np.int64) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), default, dtype)
    return np.asarray(table[name].fill_null(default).to_numpy(), dtype)


def _read_extensions(table: Any) -> Any:
    """Null where the image's name or its checksum is unknown."""
    import pyarrow as pa

    names = ("member", "checksum")
    if any(name not in table.column_names for name in names):
        return pa.nulls(len(table), pa.string()).dictionary_encode()
    column = table["member"].unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
    return column


def _read_settings(metadata: dict[bytes, bytes] | None) -> IndexSettings:
    """Of a file that another tool wrote, nothing is known."""
    try:
        content = json.loads((metadata or {}).get(_METADATA_KEY, b"{}"))
        texts = {name: content[name] for name in IndexSettings._fields if name in content}
        return IndexSettings(**{name: str(text) for name, text in texts.items()})
    except (ValueError, TypeError):
        return IndexSettings()


def _no_index(location: str, problem: str) -> CurateError:
    return CurateError(
        f"'{location}' is no index of a selection ({problem}): make one with "
        "`curate export SELECTION index.parquet --format index`"
    )
