"""What probes and validations train on and test with, written to a folder for their tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord, SelectionRecord
from curate.catalog.samples import load_locations, load_members, roles_of
from curate.errors import CurateError
from curate.execution.limits import cpu_count
from curate.execution.types import Resources
from curate.formats.sample_ids import are_members, shard_id_of
from curate.formats.shard_patterns import expand_patterns
from curate.formats.tombstones import Tombstones
from curate.formats.vectors import read_all_sample_ids
from curate.models import Model
from curate.progress import log, progress_bar
from curate.stages.embed.stage import embed, preprocessing_of
from curate.stages.import_vectors.stage import UNKNOWN_ENCODER, is_imported
from curate.training.inputs import TrainingInputs
from curate.training.nearest import count_near_duplicates
from curate.training.pca import Reduction, fit_reduction

_MAX_COMPARED = 5_000_000  # samples of the corpus


@dataclass(frozen=True)
class ExtraShards:
    """Shards that are not of the corpus, in a catalog inside the corpus' own."""

    catalog: Catalog
    urls: list[str]


def embed_test_set(
    catalog: Catalog, parent: EmbeddingRecord, patterns: list[str] | str, folder: str = "test"
) -> ExtraShards:
    """Embed test shards, or another task's, by the same encoder into a catalog inside this one."""
    if is_imported(parent) and parent.encoder == UNKNOWN_ENCODER:
        raise CurateError(
            f"the vectors of '{parent.embedding}' were imported, and other shards have none: hold "
            "out a part of the corpus, or import with --encoder SPEC under another --name"
        )
    inner_catalog = Catalog(catalog.path / folder)
    tombstones = Tombstones.load(catalog.path)
    if tombstones.digests:  # a catalog that is made after a forgetting has none yet
        tombstones.save(inner_catalog.create().path)
    urls = expand_patterns([patterns] if isinstance(patterns, str) else patterns)
    roles = roles_of(parent)
    embed(
        inner_catalog,
        urls,
        encoder=parent.encoder,
        checkpoint=parent.checkpoint,
        label=roles.label,
        key=roles.key_rule,
        image=roles.image,
        caption=roles.caption,
        decode=preprocessing_of(parent)["decode"],
        captions=preprocessing_of(parent)["captions"],
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


def warn_of_near_duplicates(catalog: Catalog, embedding: str, test: ExtraShards) -> None:
    """Say how many of the test samples have a near-duplicate among those to train on.

    Not on corpora of more than a few million samples, where the pass over all vectors takes longer
    than training.
    """
    files = catalog.vector_files(embedding)
    shard_ids = shard_ids_of_urls(test.catalog, test.urls)
    test_files = {
        file: count
        for file, count in test.catalog.vector_files(embedding).items()
        if shard_id_of(file) in shard_ids
    }
    num_rows = sum(files.values())
    if num_rows > _MAX_COMPARED or not sum(test_files.values()):
        return
    total = num_rows + sum(test_files.values())
    with progress_bar("compare", total) as advance:
        result = count_near_duplicates(files, test_files, advance)
    if result.num_duplicated:
        log.warning(
            "%s of %s test samples examined have a near-duplicate among those to train on "
            "(cosine %.3f or more): accuracies are too high by as much at most",
            f"{result.num_duplicated:,}",
            f"{result.num_examined:,}",
            result.threshold,
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
    labels_of: Callable[[np.ndarray], np.ndarray],
    *,
    reduction: Reduction | None = None,
    urls: list[str] | None = None,
    within: str | None = None,
) -> Reduction | None:
    """Write what the models read into `folder`; returns how vectors were reduced.

    `labels_of` gives class numbers for sample ids, int64 [n], −1 for none. The test samples are
    reduced in the same way. Only the shards `urls` count, and only the members of the selection
    `within`. The reduction depends on the whole embedding all the same, so that corpora of several
    sizes are seen alike.
    """
    files = catalog.vector_files(embedding)
    if urls is not None:
        shard_ids = shard_ids_of_urls(catalog, urls)
        files = {file: count for file, count in files.items() if shard_id_of(file) in shard_ids}
    total = sum(files.values())
    if not total:
        raise CurateError(
            f"the embedding '{embedding}' in '{catalog.path}' is empty: "
            "look at `curate query failures`"
        )
    sample_ids = read_all_sample_ids(files)
    if within is not None:
        catalog.require(SelectionRecord, within)
        sample_ids = sample_ids[are_members(sample_ids, load_members(catalog, within))]
    inputs = TrainingInputs(folder)
    inputs.write_samples(sample_ids, labels_of(sample_ids))
    sample_ids = inputs.sample_ids
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


def warn_of_unlabelled(inputs: TrainingInputs) -> None:
    """Say how many samples cannot be learned from."""
    num_unlabelled = int((inputs.labels < 0).sum())
    if num_unlabelled:
        log.warning(
            "%s of %s samples have no label and are left out",
            f"{num_unlabelled:,}",
            f"{len(inputs.labels):,}",
        )


def shard_ids_of_urls(catalog: Catalog, urls: list[str]) -> set[int]:
    """The ids of shards by their URLs."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select shard_id from shards where url in (select unnest(?))", [urls]
        ).fetchall()
    return {shard_id for (shard_id,) in rows}
