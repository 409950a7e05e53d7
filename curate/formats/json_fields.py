"""Fields of the .json members of samples as typed columns, in one Parquet file per shard.

A field is named by its path, `a.b.c` for {"a": {"b": {"c": 1}}}. Its type is int, double, text,
bool or json (a list or an object, as JSON text). Numbers of both kinds are doubles; other values of
several types are texts.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from curate.storage.atomic import atomic_write

ALL_FIELDS = "all"
# More are no columns but data, such as an object with a key for every sample.
MAX_FIELDS = 1_000
_METADATA_KEY = b"curate:fields"
_INT64 = range(-(1 << 63), 1 << 63)


class FieldType(NamedTuple):
    """A field, by its path, and the type of its values."""

    path: str
    type: str


class FieldsHeader(NamedTuple):
    """What a file of fields says of itself.

    `requested` is `ALL_FIELDS` or the paths that were asked for; column `field_3` of the file is
    `fields[3]`. `is_cut` where the shard has more than `MAX_FIELDS`. `num_unreadable` counts .json
    members that are no JSON object.
    """

    requested: str | list[str]
    fields: list[FieldType]
    is_cut: bool
    num_unreadable: int


def find_field(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a path, or None. A key with dots in it counts as one that has the path."""
    if path in fields:
        return fields[path]
    for position, character in enumerate(path):
        inner = fields.get(path[:position]) if character == "." else None
        if isinstance(inner, dict):
            value = find_field(inner, path[position + 1 :])
            if value is not None:
                return value
    return None


def flatten_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Every value that is no object, by its path; an empty object is a value."""
    flat: dict[str, Any] = {}
    pending = list(fields.items())[::-1]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict) and value:
            pending += [(f"{path}.{key}", inner) for key, inner in value.items()][::-1]
        else:
            flat.setdefault(path, value)
    return flat


def type_of(value: Any) -> str:
    """The type of a column for this value alone."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in _INT64 else "text"
    if isinstance(value, float):
        return "double"
    return "text" if isinstance(value, str) else "json"


def widen(first: str, second: str) -> str:
    """The type of a column for values of both types."""
    if first == second:
        return first
    return "double" if {first, second} == {"int", "double"} else "text"


def to_text(value: Any) -> str:
    """A value in a column of texts: equal numbers have one spelling, other values are JSON."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        text = str(int(value))
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        text = _to_json(value)
    # JSON can hold halves of surrogate pairs, which are not Unicode.
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _to_json(value: Any) -> str:
    """JSON as SQL reads it: numbers that are not finite, which only Python knows, are null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
        return json.dumps(plain, ensure_ascii=False)


class FieldTable:
    """Collects the fields of one shard's samples: all, or those of the paths `requested`."""

    def __init__(self, requested: str | list[str]) -> None:
        self.requested = requested
        self.num_unreadable = 0
        self._sample_ids: list[int] = []
        # By path: the type so far, the indices of the samples that have the field, their values.
        self._columns: dict[str, tuple[str, list[int], list[Any]]] = {}
        self._is_cut = False

    def add(self, sample_id: int, member: bytes | None) -> None:
        """Take in the .json member of a sample, or None where it has none."""
        if member is None:
            return
        try:
            fields = json.loads(member)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            self.num_unreadable += 1
            return
        if isinstance(self.requested, str):
            values = flatten_fields(fields)
        else:
            values = {path: find_field(fields, path) for path in self.requested}
        row = len(self._sample_ids)
        self._sample_ids.append(sample_id)
        for path, value in values.items():
            if value is not None:
                self._add_value(to_text(path), row, value)

    def _add_value(self, path: str, row: int, value: Any) -> None:
        if path not in self._columns and len(self._columns) >= MAX_FIELDS:
            self._is_cut = True
            return
        column_type, rows, values = self._columns.get(path, (type_of(value), [], []))
        if rows and rows[-1] == row:  # paths that differ only in what is no Unicode
            return
        rows.append(row)
        values.append(value)
        self._columns[path] = (widen(column_type, type_of(value)), rows, values)

    def header(self) -> FieldsHeader:
        fields = [FieldType(path, column[0]) for path, column in self._columns.items()]
        return FieldsHeader(self.requested, fields, self._is_cut, self.num_unreadable)

    def write(self, location: str) -> None:
        """Write the file in one step: a row for each sample with a .json member that is read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrow_types = {"int": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
        arrays = {"sample_id": pa.array(self._sample_ids, pa.int64())}
        for index, (column_type, rows, values) in enumerate(self._columns.values()):
            column: list[Any] = [None] * len(self._sample_ids)
            is_text = column_type not in arrow_types
            for row, value in zip(rows, values, strict=True):
                # An integer in a column of doubles must be a float before Arrow sees it.
                column[row] = to_text(value) if is_text else _convert(value, column_type)
            arrays[f"field_{index}"] = pa.array(column, arrow_types.get(column_type, pa.string()))
        metadata = {_METADATA_KEY: json.dumps(self.header()._asdict())}
        table = pa.table(arrays).replace_schema_metadata(metadata)
        with atomic_write(location) as temporary:
            pq.write_table(table, temporary)


def _convert(value: Any, column_type: str) -> Any:
    return float(value) if column_type == "double" else value


def read_fields_header(path: Path) -> FieldsHeader:
    """What the file says of itself."""
    import pyarrow.parquet as pq

    header = json.loads(pq.read_metadata(path).metadata[_METADATA_KEY])
    fields = [FieldType(*field) for field in header.pop("fields")]
    return FieldsHeader(fields=fields, **header)


def parse_fields(columns: Iterable[str] | str) -> str | list[str]:
    """`all`, or the paths in one or several texts with commas, sorted and each once."""
    texts = [columns] if isinstance(columns, str) else columns
    paths = {path.strip() for text in texts for path in text.split(",")} - {""}
    return ALL_FIELDS if ALL_FIELDS in paths else sorted(paths)


def merge_requests(requests: Iterable[str | list[str]]) -> str | list[str]:
    """What was asked for in several requests together."""
    paths: set[str] = set()
    for request in requests:
        if isinstance(request, str):
            return ALL_FIELDS
        paths.update(request)
    return sorted(paths)


def covers(first: str | list[str], second: str | list[str]) -> bool:
    """Whether a request asks for all that another one asks for."""
    if isinstance(first, str):
        return True
    return not isinstance(second, str) and set(second) <= set(first)
