"""Folders of vectors that other tools wrote: which files belong together, and whether they fit.

clip-retrieval writes img_emb/img_emb_0.npy and metadata/metadata_0.parquet, with the key of a
sample in the column image_path. DataComp publishes NAME.npz and NAME.parquet, with the column uid;
NAME.npy is read in the same way.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.errors import CurateError, OptionError
from curate.formats.numpy_files import READ_ERRORS
from curate.storage.checksums import Checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY_COLUMNS = ("image_path", "uid", "key")
_ROWS_PER_READ = 8_192
_MAX_SHOWN = 10


class VectorPart(NamedTuple):
    """A file of vectors [n, dim], .npy or .npz, and the Parquet file with the keys of its rows."""

    vectors: Path
    keys: Path


class VectorFolder(NamedTuple):
    """The parts of a folder, in the order of their names.

    `array` is the one in the .npz files; `key` the column with the keys.
    """

    parts: list[VectorPart]
    array: str | None
    key: str

    def load(self, part: int) -> np.ndarray:
        """The vectors of a part [n, dim]: mapped from a .npy file, loaded from a .npz file."""
        return load_vectors(self.parts[part].vectors, self.array)


class VectorSummary(NamedTuple):
    """What the files hold: all of one dim and dtype."""

    num_rows: int
    dim: int
    dtype: str
    num_not_finite: int
    checksum: str


def find_parts(folder: str | Path, array: str | None, key: str | None) -> VectorFolder:
    """The vectors of a folder and their keys.

    Raises CurateError for a folder that is in none of the layouts, or where files are missing.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise CurateError(f"no folder at '{folder}': give one of this machine, with .npy or .npz")
    parts = _find_pairs(path)
    if parts[0].vectors.suffix == ".npz":
        array = _choose_array(parts[0].vectors, array)
    elif array is not None:
        raise OptionError("--array goes with .npz files, which hold several arrays by name")
    return VectorFolder(parts, array, _choose_key(parts[0].keys, key))


def _find_pairs(folder: Path) -> list[VectorPart]:
    vectors_folder, keys_folder = folder, folder
    vectors_name, keys_name = r"(.+)\.np[yz]", r"(.+)\.parquet"
    if (folder / "img_emb").is_dir():
        vectors_folder, keys_folder = folder / "img_emb", folder / "metadata"
        vectors_name, keys_name = r"img_emb_(\w+)\.npy", r"metadata_(\w+)\.parquet"
    vectors = _files_by_number(vectors_folder, vectors_name)
    keys = _files_by_number(keys_folder, keys_name)
    if not vectors:
        raise CurateError(
            f"no vectors in '{folder}': there is neither img_emb/img_emb_0.npy with "
            "metadata/metadata_0.parquet (clip-retrieval) nor NAME.npz or NAME.npy with "
            "NAME.parquet (DataComp)"
        )
    lonely = sorted(vectors.keys() ^ keys.keys())
    if lonely:
        names = [str((vectors.get(name) or keys[name]).relative_to(folder)) for name in lonely]
        more = ", …" if len(names) > _MAX_SHOWN else ""
        raise CurateError(
            f"{', '.join(names[:_MAX_SHOWN])}{more}: every file of vectors needs the Parquet file "
            "with its keys, and the reverse"
        )
    return [VectorPart(vectors[name], keys[name]) for name in sorted(vectors)]


def _files_by_number(folder: Path, pattern: str) -> dict[str, Path]:
    """The files whose names match, by what the pattern's group holds: a number or a name."""
    if not folder.is_dir():
        return {}
    matches = {path: re.fullmatch(pattern, path.name) for path in sorted(folder.iterdir())}
    return {match[1]: path for path, match in matches.items() if match}


def _choose_array(path: Path, array: str | None) -> str:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = sorted(arrays.files)
    except (*READ_ERRORS, TypeError) as error:  # TypeError: a .npy file under this name
        raise CurateError(f"'{path}' is no .npz file: {error}") from error
    if array in names:
        return str(array)
    if array is None and len(names) == 1:
        return str(names[0])
    said = f"has no array '{array}'" if array else "has several arrays"
    raise OptionError(f"'{path}' {said}: choose one with --array: {', '.join(names)}")


def _choose_key(path: Path, key: str | None) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = list(pq.read_schema(path).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise CurateError(f"'{path}' is no Parquet file: {error}") from error
    candidates = [key] if key else [name for name in _KEY_COLUMNS if name in names]
    if not candidates or candidates[0] not in names:
        said = f"has no column '{key}'" if key else "has no column that is known to hold keys"
        raise OptionError(f"'{path}' {said}: name it with --key: {', '.join(names)}")
    return str(candidates[0])


def load_vectors(path: Path, array: str | None) -> np.ndarray:
    """The vectors in a file [n, dim], never unpickled. Raises CurateError."""
    try:
        if array is None:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                vectors = arrays[array]
    except KeyError as error:
        raise CurateError(f"'{path}' has no array '{array}', which others have") from error
    except (*READ_ERRORS, TypeError) as error:
        raise CurateError(f"'{path}' cannot be read: {error}; copy it again") from error
    if not isinstance(vectors, np.ndarray):
        vectors.close()
        raise CurateError(f"'{path}' holds several arrays, as .npz files do: name it so")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.shape[1]:
        raise CurateError(
            f"'{path}' holds {vectors.dtype} of shape {vectors.shape}: vectors are floating-point "
            "numbers of shape (rows, dim)"
        )
    return np.asarray(vectors)


def check_parts(folder: VectorFolder) -> "Iterator[VectorSummary]":
    """Read every file once, and yield what those up to it hold together.

    Raises CurateError where the number of rows is not that of the keys, or where files differ in
    dim or dtype.
    """
    import pyarrow.parquet as pq

    num_rows, num_not_finite, first = 0, 0, None
    checksum = Checksum()
    for index, part in enumerate(folder.parts):
        vectors = folder.load(index)
        num_keys = pq.read_metadata(part.keys).num_rows
        if len(vectors) != num_keys:
            raise CurateError(
                f"'{part.vectors}' has {len(vectors):,} rows, but '{part.keys}' {num_keys:,} keys: "
                "they do not belong together"
            )
        kind = (vectors.shape[1], str(vectors.dtype))
        first = first or kind
        if kind != first:
            raise CurateError(
                f"'{part.vectors}' has vectors of {kind[0]} {kind[1]}, '{folder.parts[0].vectors}' "
                f"of {first[0]} {first[1]}: an embedding has one kind"
            )
        for start in range(0, len(vectors), _ROWS_PER_READ):
            rows = np.ascontiguousarray(vectors[start : start + _ROWS_PER_READ])
            checksum.update(rows.view(np.uint8).reshape(-1).data)
            num_not_finite += int((~is_finite(rows)).sum())
        num_rows += len(vectors)
        yield VectorSummary(num_rows, *first, num_not_finite, checksum.text)


def is_finite(vectors: np.ndarray) -> np.ndarray:
    """Which vectors [n, dim] are finite in half precision, as they are stored: bool [n]."""
    with np.errstate(over="ignore"):
        return np.asarray(np.isfinite(vectors.astype(np.float16)).all(axis=1))
