"""The Parquet file by which a worker hands a finished shard to the driver, until it is committed.

Its rows are samples and failures; its metadata describe the whole shard.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from curate.formats.sample_ids import SHARD_FILES, shard_filename
from curate.storage import files
from curate.storage.atomic import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

_FOLDER = "pending"
_FIELDS_PREFIX = "fields-"


@dataclass
class SampleRecord:
    """One sample on its way through a worker. A failed one has `error` set, and no vector.

    A record without a sample id is the failure of a shard's unreadable end.
    """

    shard_id: int
    sample_id: int | None
    key: str | None
    byte_offset: int = 0
    num_bytes: int = 0
    label: str | None = None
    caption: str | None = None
    member: str | None = None
    width: int | None = None
    height: int | None = None
    image_bytes: int | None = None
    image_checksum: int | None = None
    pixels_checksum: int | None = None
    stage: str | None = None
    error: str | None = None
    complaint: str | None = None  # of Pillow, of an image that it could read
    members: dict[str, bytes] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)
    rgbx: np.ndarray | None = None  # of the image as the encoder sees it
    vector: np.ndarray | None = None
    caption_vector: np.ndarray | None = None

    def fail(self, stage: str, error: str) -> Self:
        """Mark it as failed at a stage, and drop its pixels."""
        self.stage, self.error, self.rgbx = stage, error, None
        return self


@dataclass(frozen=True)
class ShardMetadata:
    """Counts and checksums of a whole shard.

    `vectors_checksum` is empty without vectors, `captions_checksum` without captions, and None
    where captions are not embedded.
    """

    num_samples: int
    num_embedded: int
    num_failed: int
    num_bytes: int
    etag: str
    checksum: str
    complete: bool
    vectors_checksum: str
    captions_checksum: str | None
    has_fields: bool = False  # whether the fields of .json members are in a file of their own

    def to_parquet(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_parquet(cls, metadata: dict[bytes, bytes]) -> Self:
        texts: dict[str, Any] = {key.decode(): value.decode() for key, value in metadata.items()}
        # Files of a run that an older version began have other names for the checksums.
        texts.setdefault("etag", texts.get("version", ""))
        texts.setdefault("checksum", texts.get("fingerprint", ""))
        texts.setdefault("vectors_checksum", texts.get("vectors", ""))
        texts.setdefault("captions_checksum", None)  # which to_parquet leaves out
        texts.setdefault("has_fields", "False")
        values: dict[str, Any] = {}
        for column in fields(cls):
            text = texts[column.name]
            if column.type is bool:
                values[column.name] = text in ("True", "yes")
            else:
                values[column.name] = int(text) if column.type is int else text
        return cls(**values)


def pending_folder(embedding_folder: str) -> str:
    return files.join(embedding_folder, _FOLDER)


def pending_file(embedding_folder: str, shard_id: int) -> str:
    return files.join(pending_folder(embedding_folder), shard_filename(shard_id))


def fields_file(embedding_folder: str, shard_id: int) -> str:
    """The file with the fields of a finished shard's .json members, beside its pending file."""
    return files.join(
        pending_folder(embedding_folder), f"{_FIELDS_PREFIX}{shard_filename(shard_id)}"
    )


def list_fields_files(embedding_folder: str) -> list[str]:
    """The files with fields of an embedding's finished shards."""
    return files.list_files(pending_folder(embedding_folder), f"{_FIELDS_PREFIX}{SHARD_FILES}")


def list_pending(embedding_folder: str) -> list[str]:
    """The pending files of an embedding."""
    return files.list_files(pending_folder(embedding_folder), SHARD_FILES)


def write_pending(location: str, records: Sequence[SampleRecord], metadata: ShardMetadata) -> None:
    """Write a shard's pending file in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    columns = {name: [getattr(record, name) for record in records] for name in schema.names}
    table = pa.table(columns, schema=schema).replace_schema_metadata(metadata.to_parquet())
    with atomic_write(location) as temporary:
        pq.write_table(table, temporary)


def read_records(path: Path) -> list[SampleRecord]:
    """The samples and failures in a pending file."""
    import pyarrow.parquet as pq

    return [SampleRecord(**row) for row in pq.read_table(path).to_pylist()]


def read_metadata(path: Path) -> ShardMetadata:
    """The metadata of the shard in a pending file."""
    import pyarrow.parquet as pq

    return ShardMetadata.from_parquet(pq.read_metadata(path).metadata)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    integer, text = pa.int64(), pa.string()
    return pa.schema(
        {
            "sample_id": integer,
            "shard_id": integer,
            "key": text,
            "label": text,
            "caption": text,
            "byte_offset": integer,
            "num_bytes": integer,
            "width": pa.int32(),
            "height": pa.int32(),
            "image_bytes": integer,
            "image_checksum": pa.uint64(),
            "pixels_checksum": pa.uint64(),
            "member": text,
            "stage": text,
            "error": text,
        }
    )
