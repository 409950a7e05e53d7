"""What probes and validations train on and test with, written to a folder for their tasks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord, SelectionRecord
from curate.catalog.samples import load_labels, load_locations, load_members
from curate.errors import CurateError
from curate.execution.limits import cpu_count
from curate.execution.types import Resources
from curate.formats.sample_ids import shard_id_of
from curate.formats.shard_patterns import expand_patterns
from curate.formats.vectors import read_sample_ids
from curate.models import Model
from curate.progress import progress_bar
from curate.stages.embed.stage import embed, preprocessing_of
from curate.training.inputs import TrainingInputs
from curate.training.pca import Reduction, fit_reduction


@dataclass(frozen=True)
class ExtraShards:
    """Shards that are not of the corpus, in a catalog inside the corpus' own."""

    catalog: Catalog
    urls: list[str]


def embed_test_set(
    catalog: Catalog, parent: EmbeddingRecord, patterns: list[str] | str, folder: str = "test"
) -> ExtraShards:
    """Embed test shards, or another task's, by the same encoder into a catalog inside this one."""
    inner_catalog = Catalog(catalog.path / folder)
    urls = expand_patterns([patterns] if isinstance(patterns, str) else patterns)
    embed(
        inner_catalog,
        urls,
        encoder=parent.encoder,
        checkpoint=parent.checkpoint,
        label=parent.label_source,
        decode=preprocessing_of(parent)["decode"],
        name=parent.embedding,
    )
    return ExtraShards(inner_catalog, urls)


def check_no_leakage(catalog: Catalog, urls: list[str] | None, test: ExtraShards) -> None:
    """CurateError where a shard, under whatever name, would be trained on and tested with.

    Training is on all of `catalog`, or on its shards `urls`.
    """
    trained = _urls_by_checksum(catalog, urls)
    tested = _urls_by_checksum(test.catalog, test.urls)
    shared = sorted(tested[checksum] for checksum in trained.keys() & tested.keys())
    if shared:
        raise CurateError(
            f"'{shared[0]}' is among the shards to train on too: give others with --test"
        )


def _urls_by_checksum(catalog: Catalog, urls: list[str] | None) -> dict[str, str]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select checksum, url from shards where num_samples > 0 "  # empty ones are all alike
            "and ($1::text[] is null or url in (select unnest($1::text[])))",
            [urls],
        ).fetchall()
    return dict(rows)


def write_training_data(
    catalog: Catalog,
    embedding: str,
    folder: Path,
    models: list[Model],
    classes: dict[str, int],
    *,
    reduction: Reduction | None = None,
    urls: list[str] | None = None,
    within: str | None = None,
) -> Reduction | None:
    """Write what the models read into `folder`; returns how vectors were reduced.

    The test samples are reduced in the same way. Only the shards `urls` count, and only the members
    of the selection `within`. The reduction depends on the whole embedding all the same, so that
    corpora of several sizes are seen alike.
    """
    files = catalog.vector_files(embedding)
    if urls is not None:
        shard_ids = _shard_ids(catalog, urls)
        files = {file: count for file, count in files.items() if shard_id_of(file) in shard_ids}
    total = sum(files.values())
    if not total:
        raise CurateError(
            f"the embedding '{embedding}' in '{catalog.path}' is empty: "
            "look at `curate query failures`"
        )
    sample_ids = np.concatenate([read_sample_ids(file) for file in files])
    if within is not None:
        catalog.require(SelectionRecord, within)
        sample_ids = sample_ids[np.isin(sample_ids, load_members(catalog, within))]
    inputs = TrainingInputs(folder)
    inputs.write_samples(sample_ids, load_labels(catalog, sample_ids, classes))
    if any(not model.image_size for model in models):
        with progress_bar("reduce", 2 * total) as advance:
            reduction = reduction or fit_reduction(files, 0, advance)
            inputs.write_rows(files, reduction, advance)
    image_sizes = {model.image_size for model in models if model.image_size}
    if image_sizes:
        locations = load_locations(catalog, sample_ids)
        inputs.write_locations(locations)
        for image_size in filter(inputs.can_cache_images, image_sizes):
            with progress_bar("decode", len(sample_ids)) as advance:
                inputs.write_images(locations, image_size, Resources(cpu_count()), advance)
    return reduction


def _shard_ids(catalog: Catalog, urls: list[str]) -> set[int]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id from shards where url in (select unnest(?))", [urls]
        ).fetchall()
    return {shard_id for (shard_id,) in rows}
