"""The samples that deduplication leaves, clustered again, and their distances to the centroids."""

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, ScoringRecord
from curate.catalog.samples import fill_column
from curate.catalog.sql import quote_literal
from curate.errors import OptionError
from curate.stages.staleness import find_stale

_METRIC = "ssl_prototypes"


def score_survivors(
    catalog: Catalog,
    keep_dedup: float,
    *,
    embedding: str | None,
    within: str | None,
    seed: int,
    workers: int,
) -> ScoringRecord:
    """The prototypes within what a deduplication to `keep_dedup` leaves; its three sets are kept.

    A clustering within it that the catalog has is taken as it is.
    """
    # These import torch, and other selections should not.
    from curate.stages.cluster.stage import cluster
    from curate.stages.dedup.stage import dedup
    from curate.stages.score.stage import score

    if not 0 < keep_dedup < 1:
        raise OptionError(
            f"--option keep_dedup={keep_dedup:g}: give a fraction above 0 and below 1"
        )
    survivors = dedup(catalog, keep=keep_dedup, embedding=embedding, within=within, workers=workers)
    clustering = _find_clustering_within(catalog, survivors)
    if clustering is None:
        clustering = cluster(
            catalog, within=survivors, embedding=embedding, seed=seed, workers=workers
        )
    (scoring,) = score(catalog, _METRIC, clustering=clustering, within=survivors, workers=workers)
    return catalog.require(ScoringRecord, scoring)


def _find_clustering_within(catalog: Catalog, selection: str) -> str | None:
    """The newest clustering that was made within a selection, and is not out of date."""
    for name in reversed(catalog.list_names(ClusteringRecord)):
        record = catalog.require(ClusteringRecord, name)
        is_within = catalog.run_arguments(record.run_id).get("within") == selection
        if is_within and not find_stale(catalog, record=record):
            return name
    return None


def load_survivor_distances(catalog: Catalog, scoring: str, sample_ids: np.ndarray) -> np.ndarray:
    """The scores of sorted ids, float64 [n], −inf for those without one."""
    distances = np.full(len(sample_ids), -np.inf)
    condition = f"scoring = {quote_literal(scoring)} and score is not null"
    query = f"select sample_id, score from scores where {condition}"
    with catalog.reading() as connection:
        fill_column(connection, query, sample_ids, distances)
    return distances
