"""manifest.json and index.parquet of an export: their writers and readers.

They are in the folder .curate, because readers of a folder of shards take every other file that
they see for one (load_dataset, ray.data). Exports of earlier versions have them beside the shards.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import xxhash

from curate.formats.samples import FIRST_DOT
from curate.stages.export.layout import PackedShard, SelectionMembers
from curate.stages.export.worker import SourceShard, WrittenShard
from curate.storage import files
from curate.storage.atomic import atomic_write

SIDE_FOLDER = ".curate"
MANIFEST_NAME, INDEX_NAME = f"{SIDE_FOLDER}/manifest.json", f"{SIDE_FOLDER}/index.parquet"
KEYS_UNCHANGED = "as they came"
_ROW_GROUP = 1 << 18  # rows
_INDEX_BATCH = 1 << 14  # rows read at a time


class WeightSummary(NamedTuple):
    """The weights in the column `weight` of index.parquet: by which groups, and their range."""

    by: str
    least: float
    largest: float


class RepeatSummary(NamedTuple):
    """The column `repeats` of index.parquet: how many samples an epoch has with them, and the most
    of one sample."""

    num_presentations: int
    largest: int


@dataclass(frozen=True)
class Manifest:
    """What an export is: it is written last, so a folder that has it is whole.

    `selection` are the columns of the selection, `lineage` the runs back to the embedding. With
    `complement`, the samples are all others. `weights` and `repeats` are those of index.parquet;
    shards have each sample once. `empty_shards` says that a mirror has shards of which no sample is
    kept, `key_rule` where keys end.
    """

    curate: str
    fingerprint: str
    selection: dict[str, Any]
    layout: str
    num_samples: int
    num_shards: int
    num_bytes: int
    keys: str
    shards: list[WrittenShard]
    sources: list[SourceShard]
    lineage: list[dict[str, Any]]
    complement: bool = False
    unique_keys: bool = False
    empty_shards: bool = False
    key_rule: str = FIRST_DOT
    weights: WeightSummary | None = None
    repeats: RepeatSummary | None = None
    num_forgotten: int = 0  # samples that `curate forget` has taken out


def find_side_file(folder: str, name: str) -> str:
    """The location of MANIFEST_NAME or INDEX_NAME, also in an export of an earlier version."""
    location = files.join(folder, name)
    earlier = files.join(folder, name.removeprefix(f"{SIDE_FOLDER}/"))
    return earlier if not files.is_file(location) and files.is_file(earlier) else location


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write manifest.json in one step."""
    content = asdict(manifest) | {"sources": [source._asdict() for source in manifest.sources]}
    content["weights"] = manifest.weights._asdict() if manifest.weights else None
    content["repeats"] = manifest.repeats._asdict() if manifest.repeats else None
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(files.join(folder, MANIFEST_NAME)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_manifest(folder: str) -> Manifest:
    """Read manifest.json, of older versions too.

    Raises OSError, or ValueError for what is no manifest of an export.
    """
    try:
        content = json.loads(files.read_bytes(find_side_file(folder, MANIFEST_NAME)))
        shards = [
            WrittenShard(
                _typed(shard["path"], str),
                _typed(shard["num_samples"], int),
                _typed(shard["num_bytes"], int),
                _typed(_checksum(shard), str),
            )
            for shard in content["shards"]
        ]
        sources = [
            SourceShard(
                _typed(source["url"], str),
                _typed(source["num_bytes"], int),
                str(source.get("etag", source.get("version", ""))),
                _typed(_checksum(source), str),
            )
            for source in content["sources"]
        ]
        return Manifest(
            curate=str(content.get("curate", "")),
            fingerprint=str(content.get("fingerprint", "")),
            selection=_typed(content["selection"], dict),
            layout=_typed(content["layout"], str),
            num_samples=_typed(content["num_samples"], int),
            num_shards=_typed(content.get("num_shards", len(shards)), int),
            num_bytes=_typed(content.get("num_bytes", 0), int),
            keys=str(content.get("keys", "")),
            shards=shards,
            sources=sources,
            lineage=_typed(content.get("lineage", []), list),
            complement=_typed(content.get("complement", False), bool),
            unique_keys=_typed(content.get("unique_keys", False), bool),
            empty_shards=_typed(content.get("empty_shards", False), bool),
            key_rule=_typed(content.get("key_rule", FIRST_DOT), str),
            weights=_read_weights(content.get("weights")),
            repeats=_read_repeats(content.get("repeats")),
            num_forgotten=_typed(content.get("num_forgotten", 0), int),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no manifest of an export") from error


def _read_weights(entry: dict[str, Any] | None) -> WeightSummary | None:
    if entry is None:
        return None
    return WeightSummary(
        _typed(entry["by"], str), _typed(entry["least"], float), _typed(entry["largest"], float)
    )


def _read_repeats(entry: dict[str, Any] | None) -> RepeatSummary | None:
    if entry is None:
        return None
    return RepeatSummary(_typed(entry["num_presentations"], int), _typed(entry["largest"], int))


def _checksum(entry: dict[str, Any]) -> Any:
    """Exports of versions before 0.2 call it a fingerprint."""
    return entry["checksum"] if "checksum" in entry else entry["fingerprint"]


def _typed(value: Any, expected: type) -> Any:
    if not isinstance(value, expected):
        raise TypeError(f"{value!r} is no {expected.__name__}")
    return value


class KeySequence:
    """Keys in their order, as their number and a checksum: two are equal where all keys are."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = xxhash.xxh3_128()

    def append(self, key: str) -> None:
        """Add a key."""
        data = key.encode("utf-8", "surrogatepass")
        self.count += 1
        self._hash.update(len(data).to_bytes(4, "little"))
        self._hash.update(data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeySequence):
            return NotImplemented
        return self.count == other.count and self._hash.digest() == other._hash.digest()


class IndexSummary(NamedTuple):
    """What index.parquet holds: its number of rows and, where shards were written, the keys of each
    by its path."""

    num_rows: int
    keys: dict[str, KeySequence]


def summarize_index(folder: str) -> IndexSummary:
    """Read index.parquet, in memory that grows with the number of shards only.

    Raises OSError, KeyError, ValueError or pyarrow's errors where it is damaged.
    """
    keys: dict[str, KeySequence] = {}
    num_rows = 0
    for num_batch_rows, exported in _iterate_index(folder):
        num_rows += num_batch_rows
        for path, key in exported:
            keys.setdefault(path, KeySequence()).append(key)
    return IndexSummary(num_rows, keys)


def read_index_keys(folder: str, path: str) -> list[str]:
    """The keys of one exported shard in index.parquet. Raises as `summarize_index`."""
    return [
        key
        for _, exported in _iterate_index(folder)
        for exported_path, key in exported
        if exported_path == path
    ]


def _iterate_index(folder: str) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Batches of rows: how many, and (shard, key) of each where shards were written."""
    import pyarrow.parquet as pq

    with (
        files.open_binary(find_side_file(folder, INDEX_NAME)) as stream,
        pq.ParquetFile(stream) as index,
    ):
        names = index.schema_arrow.names
        if "sample_id" not in names:
            raise KeyError("sample_id")
        has_shards = "shard" in names
        columns = ["shard", "exported_key"] if has_shards else ["sample_id"]
        for batch in index.iter_batches(_INDEX_BATCH, columns=columns):
            exported = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            rows = list(exported) if has_shards else []
            if any(None in row for row in rows):
                raise ValueError("it has rows without a shard or a key")
            yield len(batch), rows


class IndexWriter:
    """Writes index.parquet as output shards pass by.

    Each member has its url, key and sample id and, where shards are written, its output shard and
    its key there; and its weight, and how often it comes in an epoch, where the selection has that.
    """

    def __init__(self, path: Path, members: SelectionMembers, *, with_shards: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.num_changed_keys = 0
        self._urls = pa.array([source.url for source in members.sources.values()], pa.string())
        self._shard_ids = np.array(list(members.sources), np.int64)
        self._with_shards = with_shards
        self._pending: list[PackedShard] = []
        text = pa.string()
        fields = {"url": pa.dictionary(pa.int32(), text), "key": text, "sample_id": pa.int64()}
        if with_shards:
            fields |= {"shard": text, "exported_key": text}
        self._with_weights = members.has_weights
        if self._with_weights:
            fields |= {"weight": pa.float32()}
        self._with_repeats = members.has_repeats
        if self._with_repeats:
            fields |= {"repeats": pa.int32()}
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, packed: PackedShard) -> None:
        """Add the members of an output shard."""
        self._pending.append(packed)
        if packed.output:
            self.num_changed_keys += sum(
                len(source_range.prefixes) for source_range in packed.output.ranges
            )
        if sum(len(packed.keys) for packed in self._pending) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        shard_ids = np.concatenate([packed.rows.shard_ids for packed in self._pending])
        sample_ids = np.concatenate([packed.rows.sample_ids for packed in self._pending])
        keys = np.concatenate([packed.rows.keys for packed in self._pending])
        url_indices = np.searchsorted(self._shard_ids, shard_ids).astype(np.int32)
        columns = [
            pa.DictionaryArray.from_arrays(url_indices, self._urls),
            pa.array(keys, pa.string()),
            pa.array(sample_ids),
        ]
        if self._with_shards:
            paths = np.array(
                [packed.output.path for packed in self._pending if packed.output], object
            )
            counts = [len(packed.keys) for packed in self._pending]
            columns.append(pa.array(np.repeat(paths, counts), pa.string()))
            exported_keys = [key for packed in self._pending for key in packed.keys]
            columns.append(pa.array(exported_keys, pa.string()))
        if self._with_weights:
            weights = np.concatenate([packed.rows.weights for packed in self._pending])
            columns.append(pa.array(weights))
        if self._with_repeats:
            repeats = np.concatenate([packed.rows.repeats for packed in self._pending])
            columns.append(pa.array(repeats, pa.int32()))
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._pending.clear()
