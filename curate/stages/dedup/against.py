"""Duplicates across two catalogs, such as training and test data: leakage."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.errors import CurateError
from curate.stages.dedup.exact import ExactMatches
from curate.stages.dedup.neighbours import VectorSets
from curate.stages.training_data import embed_test_set

LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


class OtherCatalog(NamedTuple):
    """The catalog to compare with, the embedding in it, and the samples: sorted ids int64 [n]."""

    catalog: Catalog
    embedding: str
    sample_ids: np.ndarray
    name: str


class Matches(NamedTuple):
    """Pairs of a sample and one of the other catalog, each once: ids int64 [p] each, the index in
    KINDS int8 [p], and the cosine float64 [p]."""

    sample_ids: np.ndarray
    other_ids: np.ndarray
    kinds: np.ndarray
    similarities: np.ndarray


def open_other(catalog: Catalog, parent: EmbeddingRecord, against: list[str] | str) -> OtherCatalog:
    """The catalog in a folder, or shards, which are embedded into a catalog inside this one.

    CurateError where the other catalog has no embedding by the same weights and preprocessing.
    """
    patterns = [against] if isinstance(against, str) else against
    if len(patterns) == 1 and (Path(patterns[0]).expanduser() / "catalog.duckdb").is_file():
        other = Catalog(Path(patterns[0]).expanduser())
        if other.path == catalog.path:
            raise CurateError("--against: it is this catalog itself; leave it out")
        embedding = _find_same_embedding(other, parent)
        urls = None
    else:
        extra = embed_test_set(catalog, parent, patterns)
        other, embedding, urls = extra.catalog, parent.embedding, extra.urls
    with other.reading() as connection:
        columns = connection.execute(
            "select sample_id from samples join shards using (shard_id) "
            "where $1::text[] is null or url in (select unnest($1::text[])) order by 1",
            [urls],
        ).fetchnumpy()
    sample_ids = np.asarray(columns["sample_id"], np.int64)
    if not len(sample_ids):
        raise CurateError(f"--against: no sample of '{other.path}' could be embedded")
    return OtherCatalog(other, embedding, sample_ids, ", ".join(patterns))


def _find_same_embedding(other: Catalog, parent: EmbeddingRecord) -> str:
    for name in other.list_names(EmbeddingRecord):
        record = other.require(EmbeddingRecord, name)
        same = record.weights_sha256, record.preprocessing
        if same == (parent.weights_sha256, parent.preprocessing):
            return name
    raise CurateError(
        f"--against: '{other.path}' has no embedding like '{parent.embedding}': embed it by "
        f"`curate embed -c {other.path} --encoder {parent.encoder}`, or name its shards"
    )


def merge_matches(exact: ExactMatches, near: Matches | None) -> Matches:
    """Exact and near pairs; what is exact is not near too."""
    kinds = np.where(exact.has_same_bytes, 0, 1).astype(np.int8)
    matches = Matches(exact.sample_ids, exact.other_ids, kinds, np.ones(len(kinds)))
    if near is not None:
        matches = Matches(*map(np.concatenate, zip(matches, near, strict=True)))
    keys = np.stack([matches.sample_ids, matches.other_ids], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)  # of equal ones the exact, which is first
    return Matches(*(column[first] for column in matches))


def find_near_matches(vectors: VectorSets, eps: float) -> Matches:
    """The near pairs of the first side's samples with the second's."""
    samples = vectors.locate()
    num_samples = len(samples.sample_ids)
    located = vectors.sort(samples, np.arange(num_samples))
    # Ranks are in the order of the sides, so the earlier of a pair is a sample of ours.
    pairs = located.find_pairs(eps, "greedy", vectors.resources, across=True).astype(np.int64)
    cosines = located.cosines(pairs[:, 0], pairs[:, 1])
    return Matches(
        samples.sample_ids[pairs[:, 0]],
        samples.sample_ids[pairs[:, 1]],
        np.full(len(pairs), 2, np.int8),
        np.minimum(cosines, 1),
    )


def count_by_eps(matches: Matches, eps: float | None) -> list[tuple[str, int, int]]:
    """How many samples of the other catalog have a duplicate, and how many of ours are one: by
    threshold, exact ones first, up to `eps`."""
    rungs = [("exact", matches.kinds < 2)]
    if eps is not None:
        steps = [*(step for step in LADDER if step < eps), eps]
        rungs += [(f"eps {step:.4g}", matches.similarities > 1 - step) for step in steps]
    return [
        (
            name,
            len(np.unique(matches.other_ids[is_within])),
            len(np.unique(matches.sample_ids[is_within])),
        )
        for name, is_within in rungs
    ]
