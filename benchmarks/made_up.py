"""Catalogs with vectors and no corpus behind them, for benchmarks."""

from typing import TYPE_CHECKING

from curate.catalog import sets
from curate.catalog.records import EmbeddingRecord

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def insert_embedding(
    connection: "DuckDBPyConnection",
    embedding: str,
    dim: int,
    num_shards: int,
    samples_per_shard: int,
) -> None:
    """Rows that say that so many shards are embedded. Their vector files are the caller's."""
    record = EmbeddingRecord(
        embedding=embedding,
        encoder="none",
        checkpoint=None,
        weights_sha256="",
        dim=dim,
        preprocessing="{}",
        label_source="cls",
        run_id=0,
    )
    sets.replace_set(connection, record)
    connection.execute(
        "insert into shards (shard_id, url, num_bytes, etag, num_samples, checksum, complete) "
        "select i, i || '.tar', 1, '', ?, 'x' || i, true from range(?) as t(i)",
        [samples_per_shard, num_shards],
    )
    connection.execute(
        "insert into embedded_shards "
        "(embedding, shard_id, num_embedded, num_failed, vectors_checksum) "
        "select ?, i, ?, 0, null from range(?) as t(i)",
        [embedding, samples_per_shard, num_shards],
    )
