"""Vectors in Parquet: one file per shard, half precision on disk, single precision in memory."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum
from curate.storage.files import is_url, open_binary


class ShardVectors(NamedTuple):
    """The vectors of one shard: ids int64 [n] in tar order, vectors float32 [n, dim]."""

    sample_ids: np.ndarray
    vectors: np.ndarray


def write_vectors(location: str, sample_ids: np.ndarray, vectors: np.ndarray) -> str:
    """Write ids [n] and half-precision vectors [n, dim] in one step; returns the checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.array(vectors.reshape(-1), pa.float16())
    rows = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    table = pa.table({"sample_id": pa.array(sample_ids, pa.int64()), "vector": rows})
    with atomic_write(location) as temporary:
        # Half-precision noise does not compress, and its statistics help no query.
        pq.write_table(
            table,
            temporary,
            compression="none",
            use_dictionary=False,
            write_statistics=["sample_id"],
        )
        return file_checksum(temporary)


def read_vectors(location: str) -> ShardVectors:
    """The ids and vectors of one file. Raises CurateError where it is missing or damaged."""
    table = _read_table(location, ["sample_id", "vector"])
    rows = table["vector"].combine_chunks()
    values = rows.flatten().to_numpy(zero_copy_only=False)
    vectors = values.reshape(len(rows), rows.type.list_size).astype(np.float32)
    return ShardVectors(table["sample_id"].to_numpy(), vectors)


def read_sample_ids(location: str) -> np.ndarray:
    """The ids of one file, int64 [n]. Raises CurateError where it is missing or damaged."""
    return np.asarray(_read_table(location, ["sample_id"])["sample_id"].to_numpy(), np.int64)


def _read_table(location: str, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet reads a local file faster by its path than through a Python file.
    source = open_binary if is_url(location) else contextlib.nullcontext
    try:
        with source(location) as file:
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        is_missing = isinstance(error, FileNotFoundError)
        reason = "is gone" if is_missing else "is damaged: remove it"
        raise CurateError(
            f"'{location}' {reason}; "
            "the same `curate embed` again makes the vectors that are missing"
        ) from error


def sample_rows(
    files: dict[str, int],
    num_rows: int,
    seed: int,
    advance: Callable[[int, int], None],
    transform: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> np.ndarray:
    """Rows drawn without replacement, in the files' order: float32 [num_rows, dim].

    `files` maps each file to its number of rows; only files with a drawn row are read, one at a
    time. The draw depends on the seed and on these numbers alone, never on how work is split.
    `transform` is applied to the drawn rows of each file.
    """
    total = sum(files.values())
    if num_rows >= total:
        row_indices = np.arange(total)
    else:
        generator = np.random.default_rng(seed)
        row_indices = np.sort(generator.choice(total, num_rows, replace=False))
    bounds = np.cumsum([0, *files.values()])
    rows, filled = np.empty((0, 0), np.float32), 0
    for file, start, stop in zip(files, bounds, bounds[1:], strict=False):
        first, last = np.searchsorted(row_indices, [start, stop])
        file_indices = row_indices[first:last] - start
        if len(file_indices):
            file_rows = transform(read_vectors(file).vectors[file_indices])
            if not filled:
                rows = np.empty((len(row_indices), file_rows.shape[1]), np.float32)
            rows[filled : filled + len(file_rows)] = file_rows
            filled += len(file_rows)
        advance(len(file_indices), len(file_indices))
    return rows
