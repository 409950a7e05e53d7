"""Vectors in Parquet: one file per shard, half precision on disk, single precision in memory.

The vectors of captions are in files of their own, which hold only the samples that have a caption.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.storage.atomic import atomic_write
from curate.storage.checksums import file_checksum
from curate.storage.files import is_url, localize, open_binary, read_bytes

_READ_BUFFER = 1 << 20  # bytes at a time of a file that is read in batches


class ShardVectors(NamedTuple):
    """The vectors of one shard: ids int64 [n] in tar order, vectors float32 [n, dim]."""

    sample_ids: np.ndarray
    vectors: np.ndarray


def read_all_sample_ids(files: dict[str, int]) -> np.ndarray:
    """The ids of several files, given with their numbers of rows: int64 [n]."""
    sample_ids, num_filled = np.empty(sum(files.values()), np.int64), 0
    for file in files:
        ids = read_sample_ids(file)
        sample_ids[num_filled : num_filled + len(ids)] = ids
        num_filled += len(ids)
    return sample_ids[:num_filled]


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


def read_vectors(location: str, within: str | None = None) -> ShardVectors:
    """The ids and vectors of one file, or those in the file `within` (`write_sample_ids`) only.

    Raises CurateError where it is missing or damaged.
    """
    table = _read_table(location, ["sample_id", "vector"])
    sample_ids = table["sample_id"].to_numpy()
    vectors = _to_matrix(table["vector"].combine_chunks())
    if within is not None:
        is_within = _is_within(sample_ids, within)
        sample_ids, vectors = sample_ids[is_within], vectors[is_within]
    return ShardVectors(sample_ids, vectors)


def read_sample_ids(location: str) -> np.ndarray:
    """The ids of one file, int64 [n]. Raises CurateError where it is missing or damaged."""
    return np.asarray(_read_table(location, ["sample_id"])["sample_id"].to_numpy(), np.int64)


def iterate_vectors(
    location: str, batch_size: int, within: str | None = None, dtype: type = np.float32
) -> Iterator[ShardVectors]:
    """The rows of one file, so many at a time; no more of a large file is in memory.

    `dtype` np.float16 gives the numbers as they are on disk. See `read_vectors` for `within`, and
    for what is raised.
    """
    import pyarrow.parquet as pq

    with _explain_damage(location), _open_parquet(location) as file:
        # Without a buffer, Parquet reads a whole column chunk, which is up to a million vectors.
        parquet = pq.ParquetFile(file, buffer_size=_READ_BUFFER, pre_buffer=False)
        for batch in parquet.iter_batches(batch_size, columns=["sample_id", "vector"]):
            sample_ids, vectors = batch["sample_id"].to_numpy(), _to_matrix(batch["vector"], dtype)
            if within is not None:
                is_within = _is_within(sample_ids, within)
                sample_ids, vectors = sample_ids[is_within], vectors[is_within]
            yield ShardVectors(sample_ids, vectors)


def write_sample_ids(location: str, sample_ids: np.ndarray) -> None:
    """Write sorted ids, int64 [n], for workers that read the vectors of these samples only."""
    with atomic_write(location) as temporary, temporary.open("wb") as file:
        np.save(file, sample_ids)


@functools.lru_cache(maxsize=1)
def _load_sample_ids(location: str) -> np.ndarray:
    with localize([location]) as (path,):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _is_within(sample_ids: np.ndarray, within: str) -> np.ndarray:
    """Which of the sorted ids of a shard are in a file of sorted ids: [n] -> bool [n]."""
    all_ids = _load_sample_ids(within)
    first, last = np.searchsorted(all_ids, [sample_ids[0], sample_ids[-1] + 1])
    return np.isin(sample_ids, all_ids[first:last])


def _to_matrix(rows: Any, dtype: type = np.float32) -> np.ndarray:
    """A fixed-size list array of half-precision numbers as [n, dim]."""
    # Not flatten(), which imports pyarrow.compute.
    dim = rows.type.list_size
    values = rows.values.slice(rows.offset * dim, len(rows) * dim).to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(rows), dim).astype(dtype, copy=False))


def _read_table(location: str, columns: list[str]) -> Any:
    import pyarrow.parquet as pq

    with (
        _explain_damage(location),
        _open_parquet(location, whole="vector" in columns) as file,
    ):
        # Not read_table, which imports all of pyarrow.dataset.
        return pq.ParquetFile(file, pre_buffer=True).read(columns=columns)


def _open_parquet(location: str, *, whole: bool = False) -> contextlib.AbstractContextManager[Any]:
    """For `ParquetFile`; `whole` where all of it is read, which is one request to a store."""
    # Parquet reads a local file faster by its path than through a Python file.
    if not is_url(location):
        return contextlib.nullcontext(location)
    return io.BytesIO(read_bytes(location)) if whole else open_binary(location)


@contextlib.contextmanager
def _explain_damage(location: str) -> Iterator[None]:
    """Turn what goes wrong with a file into one CurateError with the remedy."""
    import pyarrow as pa

    try:
        yield
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
    within: str | None = None,
) -> np.ndarray:
    """Rows drawn without replacement, in the files' order: float32 [num_rows, dim].

    `files` maps each file to its number of rows; only files with a drawn row are read, one at a
    time. The draw depends on the seed and on these numbers alone, never on how work is split.
    `transform` is applied to the drawn rows of each file. See `read_vectors` for `within`; `files`
    then counts these rows only.
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
            file_rows = transform(read_vectors(file, within).vectors[file_indices])
            if not filled:
                rows = np.empty((len(row_indices), file_rows.shape[1]), np.float32)
            rows[filled : filled + len(file_rows)] = file_rows
            filled += len(file_rows)
        advance(len(file_indices), len(file_indices))
    return rows
