"""Exact duplicates, by the checksums that embed took: of the images' bytes and of their pixels."""

from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.samples import fetch_values
from curate.errors import CurateError
from curate.execution import engine
from curate.execution.types import Resources
from curate.progress import log, progress_bar
from curate.stages.dedup.groups import ExactGroups
from curate.stages.dedup.worker import ChecksumImages, SampleChecksums

# What makes two images the same: by pixels, which includes those that are the same by bytes.
_SAME_PIXELS = "pixels_checksum, width, height"
_SHARDS_PER_COMMIT = 64


class ExactMatches(NamedTuple):
    """Pairs of a sample and one of another catalog with the same pixels, int64 [p] each; and
    whether their bytes are the same too, bool [p]."""

    sample_ids: np.ndarray
    other_ids: np.ndarray
    has_same_bytes: np.ndarray


def load_exact_groups(catalog: Catalog, condition: str) -> ExactGroups:
    """The groups among the samples that meet an SQL condition."""
    import pyarrow as pa

    condition = f"pixels_checksum is not null and ({condition})"
    with catalog.reading() as connection:
        ((count,),) = connection.execute(
            f"select count(*) from samples where {condition}"
        ).fetchall()
        # Checksums that repeat are found here, in 8 bytes a sample; in SQL all samples would be
        # sorted, with all columns.
        query = f"select pixels_checksum from samples where {condition}"
        checksums = fetch_values(connection, query, count, np.uint64)
        checksums.sort()
        repeated = np.unique(checksums[1:][checksums[1:] == checksums[:-1]])
        connection.register("repeated", pa.table({"pixels_checksum": repeated}))
        columns = connection.execute(
            f"select sample_id, dense_rank() over (order by {_SAME_PIXELS})::bigint as number, "
            "image_checksum from samples semi join repeated using (pixels_checksum) "
            f"where {condition} qualify count(*) over (partition by {_SAME_PIXELS}) > 1"
        ).fetchnumpy()
    return ExactGroups(*map(np.asarray, columns.values()))


def load_exact_matches(catalog: Catalog, other: Catalog, condition: str) -> ExactMatches:
    """The pairs of samples that meet an SQL condition with samples of the other catalog."""
    with other.reading() as connection:
        other_samples = connection.sql(
            "select sample_id as other_id, pixels_checksum, width, height, image_bytes as bytes, "
            "image_checksum as checksum from samples where pixels_checksum is not null"
        ).to_arrow_table()
    with catalog.reading() as connection:
        connection.register("other_samples", other_samples)
        columns = connection.execute(
            "select sample_id, other_id, "
            "image_checksum = checksum and image_bytes = bytes as has_same_bytes "
            f"from samples join other_samples using ({_SAME_PIXELS}) where {condition}"
        ).fetchnumpy()
    return ExactMatches(*map(np.asarray, columns.values()))


def count_without_checksums(catalog: Catalog) -> int:
    """How many samples have none, because a version before schema 9 embedded them."""
    with catalog.reading() as connection:
        ((count,),) = connection.execute(
            "select count(*) from samples where pixels_checksum is null"
        ).fetchall()
    return int(count)


def check_has_checksums(catalog: Catalog, *, is_required: bool) -> None:
    """Say how to add checksums where samples have none: CurateError where they are required."""
    count = count_without_checksums(catalog)
    if not count:
        return
    message = (
        f"{count:,} samples of '{catalog.path}' have no checksums (embedded by an earlier "
        f"version, or imported): `curate dedup -c {catalog.path} --add-checksums` "
        "reads their shards once"
    )
    if is_required:
        raise CurateError(message)
    log.warning("%s; without, only near duplicates of them are found", message)


def add_missing_checksums(catalog: Catalog, resources: Resources) -> None:
    """Read the shards of all samples without checksums, and store these. A killed run continues."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id, url, checksum, list(sample_id) from samples "
            "join shards using (shard_id) where pixels_checksum is null "
            "group by shard_id, url, checksum order by shard_id"
        ).fetchall()
    items = [(*row[:3], np.array(row[3])) for row in rows]
    total = sum(len(item[3]) for item in items)
    finished = []
    with progress_bar("checksums", total) as advance:
        for _, columns in engine.map_or_raise(
            ChecksumImages(),
            items,
            resources,
            advance=advance,
            describe_item=lambda item: f"cannot read '{item[1]}'",
        ):
            finished.append(columns)
            if len(finished) == _SHARDS_PER_COMMIT:
                _store_checksums(catalog, finished)
                finished = []
    if finished:
        _store_checksums(catalog, finished)
    if items:
        log.info("added the checksums of %s samples", f"{total:,}")


def _store_checksums(catalog: Catalog, parts: list[SampleChecksums]) -> None:
    import pyarrow as pa

    names = ("sample_id", "image_bytes", "image_checksum", "pixels_checksum")
    columns = map(np.concatenate, zip(*parts, strict=True))
    with catalog.writing() as connection:
        connection.register("read", pa.table(dict(zip(names, columns, strict=True))))
        connection.execute(
            "update samples set image_bytes = read.image_bytes, "
            "image_checksum = read.image_checksum, pixels_checksum = read.pixels_checksum "
            "from read where read.sample_id = samples.sample_id"
        )
        connection.unregister("read")
