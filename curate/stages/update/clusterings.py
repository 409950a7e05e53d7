"""New samples are assigned to the centroids that a clustering has; removed ones leave it."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, EmbeddingRecord, SelectionRecord
from curate.catalog.samples import are_in_runs, load_members, to_shard_runs
from curate.catalog.sql import quote_patterns
from curate.errors import CurateError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.sample_ids import shard_of
from curate.formats.vectors import write_sample_ids
from curate.progress import log, progress_bar
from curate.stages.cluster.kmeans import AssignClusters, assignment_file
from curate.stages.update.drift import (
    SQUARES,
    SQUARES_FROM_OTHERS,
    ClusterMoments,
    Drift,
    measure_drift,
)
from curate.storage import files as storage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_DRIFT_COLUMNS = (
    "num_fitted",
    "num_since_fit",
    "excess",
    "excess_interval",
    "far_share",
    "expected_far_share",
    "num_compared_clusters",
    "num_drifted_clusters",
    "has_drifted",
)


class _Difference(NamedTuple):
    """What a clustering lacks and has too much: sorted ids int64 of samples, and their shards."""

    new_shards: list[int]
    added_ids: np.ndarray | None  # within a selection; None where new shards are added whole
    removed_ids: np.ndarray


def extend_clustering(
    catalog: Catalog, record: ClusteringRecord, resources: Resources
) -> ClusteringRecord:
    """Bring a clustering up to date under its centroids; returns its new record.

    Raises CurateError where its centroids are gone, or the embedding was made anew.
    """
    embedding = catalog.require(EmbeddingRecord, record.embedding)
    arguments = catalog.run_arguments(record.run_id)
    within = arguments.get("within")
    selection = catalog.require(SelectionRecord, within) if within else None
    centroids_file = catalog.centroids_file(record)
    if not storage.is_file(centroids_file):
        raise CurateError(
            f"the centroids of '{record.clustering}' are gone: "
            f"`{record.command} --name {record.clustering}` fits new ones"
        )
    # Before the files are listed: shards that come later make the clustering out of date.
    content = [catalog.embedding_fingerprint(embedding.embedding)]
    content += [selection.fingerprint] if selection else []
    difference = _find_difference(catalog, record, within)
    fingerprint = assignment_fingerprint(record, within, content)
    parents = [embedding.run_id, *([selection.run_id] if selection else [])]
    folder_files = catalog.vector_files(embedding.embedding)
    new_files = {catalog.vector_file(embedding.embedding, shard) for shard in difference.new_shards}
    files = {file: count for file, count in folder_files.items() if file in new_files}
    with (
        catalog.record_run(
            "cluster",
            record.clustering,
            {**arguments, "update_of": record.run_id},
            parents=parents,
            fingerprint=fingerprint,
        ) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        members_file = None
        if difference.added_ids is not None:
            members_file = storage.join(folder, "members.npy")
            write_sample_ids(members_file, difference.added_ids)
        task = AssignClusters(
            centroids_file, record.centroids_checksum, record.distance, folder, members_file
        )
        with progress_bar("assign", sum(files.values())) as advance:
            for _ in engine.map_or_raise(
                task,
                files,
                resources.for_rows(sum(files.values())),
                advance=advance,
                describe_item=lambda file: f"cannot assign {storage.filename(file)}",
            ):
                pass
        written = [assignment_file(folder, file) for file in files]
        with storage.localize(written) as paths, catalog.writing() as connection:
            if sets.find_set(connection, ClusteringRecord, record.clustering) != record:
                raise CurateError(
                    f"'{record.clustering}' was made anew in the meantime: update again"
                )
            _replace_rows(connection, record, difference, quote_patterns(paths))
            updated = _update_record(connection, record, fingerprint, run_id)
            num_removed = len(difference.removed_ids)
            num_added = updated.num_samples - record.num_samples + num_removed
            drift = _record_update(connection, updated, difference, num_added, run_id)
    _log_update(updated, num_added, num_removed, drift)
    return updated


def assignment_fingerprint(record: ClusteringRecord, within: str | None, content: list[str]) -> str:
    """The fingerprint of all samples' assignments to given centroids, whenever each was made."""
    settings = {
        "centroids": record.centroids_checksum or record.centroids_file,
        "distance": record.distance,
        "embedding": record.embedding,
        "within": within,
    }
    return provenance.fingerprint("assign", settings, *content)


def has_drifted(catalog: Catalog, clustering: str) -> bool:
    """Whether new centroids were advised when a clustering was updated last."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select has_drifted from clustering_updates where clustering = ? "
            "order by run_id desc limit 1",
            [clustering],
        ).fetchall()
    return bool(rows and rows[0][0])


def count_fitted(catalog: Catalog, record: ClusteringRecord) -> int:
    """How many of the samples that a clustering was fitted on are still there."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select num_fitted from clustering_updates where clustering = ? "
            "order by run_id desc limit 1",
            [record.clustering],
        ).fetchall()
    return int(rows[0][0]) if rows else record.num_samples


def _find_difference(catalog: Catalog, record: ClusteringRecord, within: str | None) -> _Difference:
    with catalog.reading() as connection:
        assigned = _load_shard_ids(
            connection,
            "select distinct sample_id >> 24 as shard_id from assignments where clustering = ?",
            [record.clustering],
        )
        embedded = _load_shard_ids(
            connection,
            "select shard_id from embedded_shards where embedding = ? and num_embedded > 0",
            [record.embedding],
        )
        removed_shards = np.setdiff1d(assigned, embedded)
        if within is None:
            removed_ids = _load_assigned(connection, record, removed_shards)
            new_shards = np.setdiff1d(embedded, assigned)
            return _Difference(new_shards.tolist(), None, removed_ids)
        assigned_ids = _load_assigned(connection, record, assigned)
        failed_ids = connection.execute(
            "select sample_id from failures where embedding = ? and sample_id is not null",
            [record.embedding],
        ).fetchnumpy()["sample_id"]
    member_ids = load_members(catalog, within)
    member_ids = member_ids[np.isin(shard_of(member_ids), embedded)]
    member_ids = np.setdiff1d(member_ids, failed_ids, assume_unique=True)
    added_ids = np.setdiff1d(member_ids, assigned_ids, assume_unique=True)
    return _Difference(
        np.unique(shard_of(added_ids)).tolist(),
        added_ids,
        np.setdiff1d(assigned_ids, member_ids, assume_unique=True),
    )


def _load_shard_ids(
    connection: "DuckDBPyConnection", sql: str, parameters: list[Any]
) -> np.ndarray:
    rows = connection.execute(sql, parameters).fetchnumpy()
    return np.sort(np.asarray(rows["shard_id"], np.int64))


def _load_assigned(
    connection: "DuckDBPyConnection", record: ClusteringRecord, shard_ids: np.ndarray
) -> np.ndarray:
    if not len(shard_ids):
        return np.empty(0, np.int64)
    rows = connection.execute(
        "select sample_id from assignments where clustering = ? "
        "and sample_id >> 24 in (select unnest(?::bigint[])) order by 1",
        [record.clustering, shard_ids.tolist()],
    ).fetchnumpy()
    return np.asarray(rows["sample_id"], np.int64)


def _replace_rows(
    connection: "DuckDBPyConnection",
    record: ClusteringRecord,
    difference: _Difference,
    paths: list[str],
) -> None:
    import pyarrow as pa

    if len(difference.removed_ids):
        connection.register("leaving", pa.table({"sample_id": difference.removed_ids}))
        connection.execute(
            "delete from assignments where clustering = ? "
            "and sample_id in (select sample_id from leaving)",
            [record.clustering],
        )
    if paths:
        connection.execute(
            "insert into assignments (clustering, sample_id, cluster_id, distance) "
            "select $name, sample_id, cluster_id, distance "
            "from read_parquet($files, hive_partitioning = false)",
            {"name": record.clustering, "files": paths},
        )


def _update_record(
    connection: "DuckDBPyConnection", record: ClusteringRecord, fingerprint: str, run_id: int
) -> ClusteringRecord:
    squares = SQUARES[record.distance]
    ((num_samples, objective),) = connection.execute(
        f"select count(*), coalesce(sum({squares}), 0) from assignments where clustering = ?",
        [record.clustering],
    ).fetchall()
    connection.execute(
        "update clusterings set num_samples = ?, objective = ?, fingerprint = ?, run_id = ? "
        "where clustering = ?",
        [num_samples, objective, fingerprint, run_id, record.clustering],
    )
    return replace(
        record,
        num_samples=num_samples,
        objective=objective,
        fingerprint=fingerprint,
        run_id=run_id,
    )


def _record_update(
    connection: "DuckDBPyConnection",
    record: ClusteringRecord,
    difference: _Difference,
    num_added: int,
    run_id: int,
) -> Drift:
    """Measure the drift of all samples that came after the fit, and store it with the update."""
    assigned = _load_shard_ids(
        connection,
        "select distinct sample_id >> 24 as shard_id from assignments where clustering = ?",
        [record.clustering],
    )
    rows = connection.execute(
        "select fitted_shards from clustering_updates where clustering = ? limit 1",
        [record.clustering],
    ).fetchall()
    # Within a selection, samples of fitted shards that it takes later count as fitted.
    new_shards = np.asarray(difference.new_shards, np.int64)
    fitted_shards = rows[0][0] if rows else to_shard_runs(np.setdiff1d(assigned, new_shards))
    since_fit = assigned[~are_in_runs(assigned, fitted_shards)].tolist()
    fitted = _load_fitted_moments(connection, record, since_fit)
    new = connection.execute(
        f"select cluster_id, {SQUARES[record.distance]} as squares from assignments "
        "where clustering = ? and sample_id >> 24 in (select unnest(?::bigint[]))",
        [record.clustering, since_fit],
    ).fetchnumpy()
    drift = measure_drift(fitted, np.asarray(new["cluster_id"]), np.asarray(new["squares"]))
    row = {
        "clustering": record.clustering,
        "run_id": run_id,
        "fitted_shards": fitted_shards,
        "num_added": num_added,
        "num_removed": len(difference.removed_ids),
        **{name: getattr(drift, name) for name in _DRIFT_COLUMNS},
    }
    sets.insert_row(connection, "clustering_updates", row)
    return drift


def _load_fitted_moments(
    connection: "DuckDBPyConnection", record: ClusteringRecord, since_fit: list[int]
) -> ClusterMoments:
    """How far the samples of all but these shards are from their centroids.

    Centroids of a part of the samples are not their means: then distances are taken as they are.
    """
    is_mean = record.full_iterations > 0
    squares = (SQUARES_FROM_OTHERS if is_mean else SQUARES)[record.distance]
    fitted: Any = connection.execute(
        "with fitted as (select cluster_id, distance from assignments where clustering = $1 "
        "and sample_id >> 24 not in (select unnest($2::bigint[]))), "
        "sizes as (select cluster_id, count(*) as num_samples, "
        "avg(distance::double) as mean_distance from fitted group by all) "
        f"select cluster_id, count(*) as counts, avg({squares}) as means, "
        f"coalesce(var_samp({squares}), 0) as variances, max({squares}) as largest "
        "from fitted join sizes using (cluster_id) "
        "where num_samples > 1 group by all",
        [record.clustering, since_fit],
    ).fetchnumpy()
    counts = np.zeros(record.k, np.int64)
    means, variances, largest = np.zeros((3, record.k))
    clusters = fitted["cluster_id"]
    counts[clusters] = fitted["counts"]
    means[clusters], variances[clusters] = fitted["means"], fitted["variances"]
    largest[clusters] = fitted["largest"]
    return ClusterMoments(counts, means, variances, largest)


def _log_update(record: ClusteringRecord, num_added: int, num_removed: int, drift: Drift) -> None:
    log.info(
        "clustering '%s': %s samples assigned to the centroids that it has, %s removed; "
        "%s of %s came after the fit",
        record.clustering,
        f"{num_added:,}",
        f"{num_removed:,}",
        f"{drift.num_since_fit:,}",
        f"{record.num_samples:,}",
    )
    if drift.excess is None or drift.excess_interval is None:
        return
    log.log(
        logging.WARNING if drift.has_drifted else logging.INFO,
        "drift of '%s': %s; their squared distance is %+.1f ± %.1f%% of that of fitted samples in "
        "the same clusters, %.2f%% are beyond every fitted one (%.2f%% without drift), and %s of "
        "%s clusters have drifted%s",
        record.clustering,
        "there is some, new centroids are advised (curate update --refit)"
        if drift.has_drifted
        else "none that matters",
        100 * drift.excess,
        100 * drift.excess_interval,
        100 * drift.far_share,
        100 * drift.expected_far_share,
        f"{drift.num_drifted_clusters:,}",
        f"{drift.num_compared_clusters:,}",
        "".join(
            f", cluster {cluster}: {count:,} samples {100 * excess:+.0f}%"
            for cluster, count, excess in drift.worst_clusters
        ),
    )
