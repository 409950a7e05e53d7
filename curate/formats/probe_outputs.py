"""What a probe's models predict for every sample, in Parquet, and how each model did, in JSON.

A part, models that were trained together, is one folder: SHARD_ID.parquet with a column for each
metric input, test.npz with the same of the test samples, part.json with the summary.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import CurateError
from curate.formats.numpy_files import READ_ERRORS
from curate.formats.sample_ids import shard_filename
from curate.storage.atomic import atomic_write
from curate.storage.files import open_binary

if TYPE_CHECKING:
    import pyarrow as pa

_TEST_FILE, _SUMMARY_FILE = "test.npz", "part.json"


@dataclass(frozen=True)
class ModelSummary:
    """One trained model: accuracies on what it was trained on, was not, and on test samples."""

    part: str
    model: str
    seed: int
    accuracy: float | None
    left_out_accuracy: float | None
    test_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class PartSummary:
    """What a part holds: the shards it has a file of, its models, and its files' checksums."""

    shards: list[int]
    models: list[ModelSummary]
    checksums: dict[str, str]


def write_outputs(path: Path, sample_ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """Write ids [n] and columns [n, …], which become nested lists of fixed size, in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    nested = {name: _to_nested_lists(array) for name, array in columns.items()}
    table = pa.table({"sample_id": sample_ids} | nested)
    with atomic_write(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=False,
            write_statistics=["sample_id"],
        )


def read_outputs(path: Path, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The ids [n] of one file, and those of the named columns that it has.

    Raises CurateError where it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            available = [name for name in names if name in file.schema_arrow.names]
            table = file.read(["sample_id", *available])
    except (OSError, pa.ArrowInvalid) as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else "is damaged"
        raise CurateError(
            f"'{path}' {reason}: remove its folder, and the same `curate probe` again makes it"
        ) from error
    columns = {name: _to_array(table[name].combine_chunks()) for name in available}
    return table["sample_id"].to_numpy(), columns


def write_test_outputs(part: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write what holds of the test samples."""
    np.savez(part / _TEST_FILE, allow_pickle=False, **arrays)


def read_test_outputs(part: Path) -> dict[str, np.ndarray]:
    """Read what `write_test_outputs` wrote. Raises CurateError."""
    try:
        with np.load(part / _TEST_FILE, allow_pickle=False) as arrays:
            return dict(arrays)
    except READ_ERRORS as error:
        raise CurateError(
            f"'{part / _TEST_FILE}' cannot be read: "
            f"remove '{part}', and the same `curate probe` again makes it"
        ) from error


def write_summary(part: Path, summary: PartSummary) -> None:
    """Write part.json, the last file of a part."""
    (part / _SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=1))


def read_summary(part: Path) -> PartSummary:
    """Read part.json. Raises CurateError where it is missing or damaged."""
    try:
        with open_binary(str(part / _SUMMARY_FILE)) as file:
            content = json.load(file)
        # Older parts call checksums fingerprints, and the oldest have none.
        checksums = content.get("checksums") or content.get("fingerprints")
        if not checksums:
            checksums = dict.fromkeys(map(shard_filename, content["shards"]), "")
        models = [ModelSummary(**model) for model in content["models"]]
        return PartSummary(list(content["shards"]), models, dict(checksums))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CurateError(
            f"'{part}' is gone or damaged: remove it, and the same `curate probe` again makes it"
        ) from error


def _to_nested_lists(array: np.ndarray) -> "pa.Array":
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def _to_array(column: Any) -> np.ndarray:
    import pyarrow as pa

    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)
