"""Samples that all others are compared with: a bounded number of the corpus, drawn at random."""

from collections.abc import Iterable

import numpy as np

from curate.distances import normalize_rows
from curate.formats.vectors import ShardVectors, iterate_vectors
from curate.progress import log
from curate.random_hash import random_bits

MAX_REFERENCES = 1 << 16  # with 512 numbers each, 128 MiB

_BATCH_ROWS = 1 << 12


def draw_references(
    shards: Iterable[tuple[np.ndarray, str | None]], seed: int, distance: str
) -> ShardVectors:
    """All samples with a vector, or MAX_REFERENCES of them with the lowest seeded hash.

    `shards` are sorted ids int64 [n] and the vector file of each shard, in order. Which are drawn
    depends on ids and seed alone. Returns sorted ids [r] and float32 rows [r, d], normalized for
    the distance.
    """
    drawn, files, num_samples = np.empty(0, np.int64), [], 0
    for sample_ids, file in shards:
        if file is None:
            continue
        files.append(file)
        num_samples += len(sample_ids)
        drawn = np.concatenate([drawn, sample_ids])
        if len(drawn) > 2 * MAX_REFERENCES:
            drawn = _lowest(drawn, seed)
    drawn = np.sort(_lowest(drawn, seed))
    if num_samples > len(drawn):
        log.info(
            "neighbours are looked for among %s of %s samples, drawn at random",
            f"{len(drawn):,}",
            f"{num_samples:,}",
        )
    parts = [ShardVectors(np.empty(0, np.int64), np.empty((0, 1), np.float32))]
    for file in files:
        for batch in iterate_vectors(file, _BATCH_ROWS):
            is_drawn = np.isin(batch.sample_ids, drawn)  # both are sorted
            if is_drawn.any():
                rows = normalize_rows(batch.vectors[is_drawn], distance)
                parts.append(ShardVectors(batch.sample_ids[is_drawn], rows))
    parts = parts[1:] or parts
    return ShardVectors(*map(np.concatenate, zip(*parts, strict=True)))


def _lowest(sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """The MAX_REFERENCES ids with the lowest hash, or all where there are no more."""
    if len(sample_ids) <= MAX_REFERENCES:
        return sample_ids
    order = np.argpartition(random_bits(sample_ids, seed), MAX_REFERENCES)
    return sample_ids[order[:MAX_REFERENCES]]
