"""Vectors in Parquet: one file a shard, half precision on the disk, single precision in memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.atomic import replacing
from curate.errors import CurateError


class Part(NamedTuple):
    """The vectors of one shard: ids int64 [n] in tar order, vectors float32 [n, dim]."""

    sample_ids: np.ndarray
    vectors: np.ndarray


def write(path: Path, sample_ids: np.ndarray, vectors: np.ndarray) -> None:
    """Write ids [n] and half-precision vectors [n, dim] to `path`, in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), vectors.shape[1])
    table = pa.table({"sample_id": pa.array(sample_ids, pa.int64()), "vector": rows})
    with replacing(path) as temporary:
        # Half-precision noise does not compress, and its statistics help no query.
        pq.write_table(table, temporary, compression="none", use_dictionary=False, write_statistics=["sample_id"])


def read(path: Path) -> Part:
    """The ids and vectors of one file. Raises CurateError where it is gone or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else "is damaged: remove it"
        raise CurateError(f"'{path}' {reason}; the same `curate embed` again makes the vectors that are missing") from error
    rows = table["vector"].combine_chunks()
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    return Part(table["sample_id"].to_numpy(), flat.reshape(len(rows), rows.type.list_size).astype(np.float32))
