"""Vectors in Parquet: one file a shard, half precision on the disk, single precision in memory."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate.atomic import replacing
from curate.errors import CurateError
from curate.fingerprints import of_file
from curate.storage import is_remote


class Part(NamedTuple):
    """The vectors of one shard: ids int64 [n] in tar order, vectors float32 [n, dim]."""

    sample_ids: np.ndarray
    vectors: np.ndarray


def write(path: Path, sample_ids: np.ndarray, vectors: np.ndarray) -> str:
    """Write ids [n] and half-precision vectors [n, dim] to `path`, in one step; the file's fingerprint."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), vectors.shape[1])
    table = pa.table({"sample_id": pa.array(sample_ids, pa.int64()), "vector": rows})
    with replacing(path) as temporary:
        # Half-precision noise does not compress, and its statistics help no query.
        pq.write_table(table, temporary, compression="none", use_dictionary=False, write_statistics=["sample_id"])
        return of_file(temporary)


def read(path: Path) -> Part:
    """The ids and vectors of one file. Raises CurateError where it is gone or damaged."""
    table = _table(path, ["sample_id", "vector"])
    rows = table["vector"].combine_chunks()
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    return Part(table["sample_id"].to_numpy(), flat.reshape(len(rows), rows.type.list_size).astype(np.float32))


def _table(path: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") if is_remote(path) else contextlib.nullcontext(path) as file:
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else "is damaged: remove it"
        raise CurateError(f"'{path}' {reason}; the same `curate embed` again makes the vectors that are missing") from error


def read_ids(path: Path) -> np.ndarray:
    """The ids of one file, int64 [n]. Raises CurateError where it is gone or damaged."""
    return np.asarray(_table(path, ["sample_id"])["sample_id"].to_numpy(), np.int64)


def sample(
    files: dict[Path, int], rows: int, seed: int, advance: Callable[[int, int], None],
    prepare: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> np.ndarray:  # fmt: skip
    """`rows` rows drawn without replacement from the files' rows, in the files' order: float32 [rows, dim].

    `files` have their sizes with them; only those that hold a drawn row are read, one at a time. The draw depends on
    the seed and on the sizes alone, never on how the work is split. `prepare` is done to the rows of each file.
    """
    total = sum(files.values())
    drawn = np.arange(total) if rows >= total else np.sort(np.random.default_rng(seed).choice(total, rows, replace=False))
    starts = np.cumsum([0, *files.values()])
    taken, filled = np.empty((0, 0), np.float32), 0
    for file, start, stop in zip(files, starts, starts[1:], strict=False):
        places = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, stop)] - start
        if len(places):
            found = prepare(read(file).vectors[places])
            if not filled:
                taken = np.empty((len(drawn), found.shape[1]), np.float32)
            taken[filled : filled + len(found)] = found
            filled += len(found)
        advance(len(places), len(places))
    return taken
