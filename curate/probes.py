"""What probes say of every sample, in Parquet: probes/<folder>/<part>/<shard_id>.parquet, one column an input of metrics."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.atomic import replacing
from curate.errors import CurateError
from curate.storage import opened

if TYPE_CHECKING:
    import pyarrow as pa

TEST, SUMMARY = "test.npz", "part.json"


def write(path: Path, sample_ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """Write ids [n] and columns, arrays [n, …] that become nested lists of fixed size, in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"sample_id": sample_ids} | {name: _nested(array) for name, array in columns.items()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_statistics=["sample_id"])


def read(path: Path, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The ids [n] of one file, and those of the columns that it has. Raises CurateError where it is gone or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            here = [name for name in names if name in file.schema_arrow.names]
            table = file.read(["sample_id", *here])
    except (OSError, pa.ArrowInvalid) as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else "is damaged"
        raise CurateError(f"'{path}' {reason}: remove its folder, and the same `curate probe` again makes it") from error
    return table["sample_id"].to_numpy(), {name: _flat(table[name].combine_chunks()) for name in here}


def read_test(part: Path) -> dict[str, np.ndarray]:
    """What a part holds of the test samples. Raises CurateError."""
    try:
        with np.load(part / TEST, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError) as error:
        raise CurateError(
            f"'{part / TEST}' cannot be read: remove '{part}', and the same `curate probe` again makes it"
        ) from error


def summary(part: Path) -> dict[str, Any]:
    """What a part says of itself: `shards`, the ids of those it has files of, and `models`, a row each. Raises CurateError."""
    try:
        with opened(part / SUMMARY) as file:
            return dict(json.load(file))
    except (OSError, ValueError) as error:
        raise CurateError(f"'{part}' is gone or damaged: remove it, and the same `curate probe` again makes it") from error


def _nested(array: np.ndarray) -> "pa.Array":
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def _flat(column: Any) -> np.ndarray:
    import pyarrow as pa

    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)
