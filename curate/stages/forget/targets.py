"""Which samples are to be forgotten, and what is near to them."""

import io
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.catalog.sql import check_reads_only
from curate.errors import CurateError, OptionError
from curate.formats.samples import CorruptShardError, iterate_samples
from curate.formats.tar import BLOCK, TarReader
from curate.formats.vectors import iterate_vectors, read_vectors
from curate.storage.checksums import bytes_checksum
from curate.storage.files import read_range

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BATCH_ROWS = 1 << 14
_REDACTED = "[forgotten]"
_COLUMNS = (
    "sample_id, shard_id, url, key, byte_offset, samples.num_bytes, coalesce(image_bytes, -1), "
    "coalesce(image_checksum, 0)"
)


class Target(NamedTuple):
    """A sample to forget: where it is in its shard, and its image's size and XXH3.

    The size is -1 where the catalog has no checksum; the length is 0 of a sample that failed.
    """

    sample_id: int
    shard_id: int
    url: str
    key: str
    offset: int
    length: int
    image_bytes: int
    image_checksum: int


class KeyReport(NamedTuple):
    """Keys or checksums that were asked for and are not there, and those of several samples."""

    missing: list[str]
    repeated: dict[str, int]


class NearCopy(NamedTuple):
    """A sample that stays, and the forgotten one that it is near to."""

    embedding: str
    url: str
    key: str
    cosine: float
    forgotten_id: int


def find_targets(
    catalog: Catalog, keys: list[str], checksums: list[str], where: str | None, ids: list[int]
) -> tuple[list[Target], KeyReport]:
    """The samples with these keys, image checksums, ids, or that meet a condition, and all with the
    same image under other keys. Raises CurateError, and OptionError for what is no checksum."""
    numbers = [_parse_checksum(text) for text in checksums]
    with catalog.reading(sandboxed=True) as connection:
        found = _select(connection, "key in (select unnest($1::text[]))", [keys])
        found += _select_failed(connection, keys)
        by_checksum = _select(
            connection, "image_checksum in (select unnest($1::ubigint[]))", [numbers]
        )
        counts = Counter(target.key for target in found)
        known_checksums = {target.image_checksum for target in by_checksum}
        found += by_checksum
        found += _select(connection, "sample_id in (select unnest($1::bigint[]))", [ids])
        if where is not None:
            found += _select_where(connection, where)
        images = {
            (target.image_bytes, target.image_checksum)
            for target in found
            if target.image_bytes >= 0
        }
        found += _select_images(connection, images)
    missing = [key for key in keys if not counts[key]]
    missing += [
        text
        for text, number in zip(checksums, numbers, strict=True)
        if number not in known_checksums
    ]
    repeated = {key: count for key, count in counts.items() if count > 1}
    return sorted(set(found)), KeyReport(missing, repeated)


def find_copies(catalog: Catalog, targets: Iterable[Target]) -> list[Target]:
    """The samples of another catalog that have the images of these."""
    images = {
        (target.image_bytes, target.image_checksum) for target in targets if target.image_bytes >= 0
    }
    with catalog.reading() as connection:
        return sorted(set(_select_images(connection, images)))


def find_near_copies(
    catalog: Catalog, targets: list[Target], eps: float, limit: int
) -> list[NearCopy]:
    """The samples that stay with a cosine of 1 - eps or more to a forgotten one, nearest first."""
    near: list[tuple[float, str, int, int]] = []
    ids = np.array(sorted(target.sample_id for target in targets), np.int64)
    shard_ids = {target.shard_id for target in targets}
    for embedding in catalog.list_names(EmbeddingRecord):
        vector_files = catalog.vector_files(embedding)
        forgotten_ids, forgotten = _load_vectors(catalog, embedding, shard_ids, ids)
        if not len(forgotten):
            continue
        for location in vector_files:
            for shard in iterate_vectors(location, _BATCH_ROWS):
                stays = ~np.isin(shard.sample_ids, ids)
                cosines = _normalize(shard.vectors[stays]) @ forgotten.T
                rows, columns = np.nonzero(cosines >= 1 - eps)
                near += [
                    (float(cosines[row, column]), embedding, int(sample_id), int(forgotten_id))
                    for row, column, sample_id, forgotten_id in zip(
                        rows,
                        columns,
                        shard.sample_ids[stays][rows],
                        forgotten_ids[columns],
                        strict=True,
                    )
                ]
                near = sorted(near, reverse=True)[:limit]
    with catalog.reading() as connection:
        rows_by_id = {
            sample_id: (url, key)
            for sample_id, url, key in connection.execute(
                "select sample_id, url, key from samples join shards using (shard_id) "
                "where sample_id in (select unnest($1::bigint[]))",
                [[sample_id for _, _, sample_id, _ in near]],
            ).fetchall()
        }
    return [
        NearCopy(embedding, *rows_by_id[sample_id], round(cosine, 4), forgotten_id)
        for cosine, embedding, sample_id, forgotten_id in near
        if sample_id in rows_by_id
    ]


def read_target_image(target: Target) -> bytes | None:
    """The image's bytes, from the shard; None where it cannot be read any more."""
    try:
        data = read_range(target.url, target.offset, target.length)
        tar = TarReader(io.BytesIO(data + bytes(2 * BLOCK)))
        members = next(iterate_samples(tar)).members.values()
    except (OSError, CorruptShardError, StopIteration):
        return None
    same_size = [content for content in members if len(content) == target.image_bytes]
    return next(
        (content for content in same_size if bytes_checksum(content) == target.image_checksum), None
    )


def load_raw_vectors(catalog: Catalog, targets: list[Target]) -> list[bytes]:
    """The vectors of the samples as they are on disk, of every embedding that has them."""
    ids = np.array([target.sample_id for target in targets], np.int64)
    raw: list[bytes] = []
    for embedding in catalog.list_names(EmbeddingRecord):
        for shard_id in sorted({target.shard_id for target in targets}):
            location = catalog.vector_file(embedding, shard_id)
            if location not in catalog.vector_files(embedding):
                continue
            for shard in iterate_vectors(location, _BATCH_ROWS, dtype=np.float16):
                raw += [
                    vector.tobytes() for vector in shard.vectors[np.isin(shard.sample_ids, ids)]
                ]
    return raw


def redact(text: str, keys: list[str]) -> str:
    """The text with a mark in the place of each key."""
    for key in sorted(keys, key=len, reverse=True):
        text = text.replace(key, _REDACTED)
    return text


def _load_vectors(
    catalog: Catalog, embedding: str, shard_ids: set[int], ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 [n] and unit vectors float32 [n, dim] of those of the samples that it has."""
    vector_files = catalog.vector_files(embedding)
    all_ids, vectors = [], []
    for shard_id in sorted(shard_ids):
        location = catalog.vector_file(embedding, shard_id)
        if location in vector_files:
            shard = read_vectors(location)
            is_forgotten = np.isin(shard.sample_ids, ids)
            all_ids.append(shard.sample_ids[is_forgotten])
            vectors.append(_normalize(shard.vectors[is_forgotten]))
    if not vectors:
        return np.empty(0, np.int64), np.empty((0, 1), np.float32)
    return np.concatenate(all_ids), np.concatenate(vectors)


def _normalize(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12))


def _select(
    connection: "DuckDBPyConnection", condition: str, parameters: list[object]
) -> list[Target]:
    rows = connection.execute(
        f"select {_COLUMNS} from samples join shards using (shard_id) where {condition}",
        parameters,
    ).fetchall()
    return [Target(*row) for row in rows]


def _select_failed(connection: "DuckDBPyConnection", keys: list[str]) -> list[Target]:
    """Samples that could not be used, whose names are kept all the same."""
    rows = connection.execute(
        "select distinct sample_id, shard_id, url, key, 0, 0, -1, 0 "
        "from failures join shards using (shard_id) "
        "where sample_id is not null and key in (select unnest($1::text[])) "
        "and sample_id not in (select sample_id from samples)",
        [keys],
    ).fetchall()
    return [Target(*row) for row in rows]


def _select_where(connection: "DuckDBPyConnection", where: str) -> list[Target]:
    import duckdb

    condition = f"sample_id in (select sample_id from sample_scores where ({where}\n))"
    try:
        check_reads_only(connection, f"select sample_id from samples where {condition}")
        return _select(connection, condition, [])
    except (duckdb.Error, CurateError) as error:
        raise CurateError(
            f"--where {where!r}: {str(error).splitlines()[0]}; "
            "columns: `curate query 'describe sample_scores'`"
        ) from error


def _select_images(connection: "DuckDBPyConnection", images: set[tuple[int, int]]) -> list[Target]:
    """All samples with one of these images, by size and XXH3."""
    checksums = sorted({checksum for _, checksum in images})
    same = _select(connection, "image_checksum in (select unnest($1::ubigint[]))", [checksums])
    return [target for target in same if (target.image_bytes, target.image_checksum) in images]


def _parse_checksum(text: str) -> int:
    try:
        if len(text) != 16:
            raise ValueError(text)
        return int(text, 16)
    except ValueError as error:
        raise OptionError(
            f"--checksums {text}: an image's checksum is its XXH3 in 16 hexadecimal digits; "
            "`curate query \"select key, printf('%016x', image_checksum) from samples\"` lists them"
        ) from error
