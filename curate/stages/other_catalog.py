"""Samples to compare with that are not of the corpus: of another catalog, or of other shards."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.errors import CurateError
from curate.stages.embed.stage import preprocessing_of


class OtherCatalog(NamedTuple):
    """The catalog to compare with, the embedding in it, and the samples: sorted ids int64 [n].

    `urls` are the shards that the samples are of; None stands for all of the catalog.
    """

    catalog: Catalog
    embedding: str
    sample_ids: np.ndarray
    name: str
    urls: list[str] | None


def open_other(
    catalog: Catalog, parent: EmbeddingRecord, locations: list[str] | str, flag: str
) -> OtherCatalog:
    """The catalog in a folder, or shards, which are embedded into a catalog inside this one.

    `flag` is the option that named them. CurateError where there is no sample, or where the other
    catalog has no embedding by the same weights and preprocessing.
    """
    patterns = [locations] if isinstance(locations, str) else locations
    if len(patterns) == 1 and (Path(patterns[0]).expanduser() / "catalog.duckdb").is_file():
        other = Catalog(Path(patterns[0]).expanduser())
        if other.path == catalog.path:
            raise CurateError(f"{flag}: it is this catalog itself; leave it out")
        embedding = _find_same_embedding(other, parent, flag)
        urls = None
    else:
        from curate.stages.training_data import embed_test_set  # imports torch

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
        raise CurateError(f"{flag}: no sample of '{other.path}' could be embedded")
    return OtherCatalog(other, embedding, sample_ids, ", ".join(patterns), urls)


def _find_same_embedding(other: Catalog, parent: EmbeddingRecord, flag: str) -> str:
    for name in other.list_names(EmbeddingRecord):
        record = other.require(EmbeddingRecord, name)
        same = record.weights_sha256, record.preprocessing
        if same == (parent.weights_sha256, parent.preprocessing):
            return name
    captions = " --captions" if preprocessing_of(parent)["captions"] else ""
    raise CurateError(
        f"{flag}: '{other.path}' has no embedding like '{parent.embedding}': embed it by "
        f"`curate embed -c {other.path} --encoder {parent.encoder}{captions}`, or name its shards"
    )
