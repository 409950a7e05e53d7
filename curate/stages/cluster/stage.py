"""`curate cluster`: k-means in an embedding; centroids to a file, assignments to the catalog."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, EmbeddingRecord, SelectionRecord
from curate.catalog.samples import load_members
from curate.catalog.sql import quote_patterns
from curate.distances import DISTANCES, normalize_rows
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.limits import memory_limit
from curate.execution.types import Resources
from curate.formats.centroids import save_centroids
from curate.formats.vectors import sample_rows, write_sample_ids
from curate.formatting import format_bytes
from curate.options import EmbeddingName, Option, Seed, SetName, Within, Workers, verb
from curate.progress import log, progress_bar
from curate.stages.cluster.kmeans import (
    AssignClusters,
    assignment_file,
    estimate_memory,
    fit_centroids,
)
from curate.stages.cluster.refinement import (
    Checkpoint,
    group_files,
    load_checkpoint,
    refine_centroids,
    save_checkpoint,
)
from curate.stages.staleness import warn_if_stale
from curate.storage import files as storage
from curate.storage.locks import TEMPORARY_PREFIX

# The fit only has to come near: the iterations over every row remove the sample's peculiarities.
_ROWS_PER_CENTROID = 64
_MIN_FIT_ROWS = 1 << 16  # fewer save no time
_MAX_AUTO_K = 50_000

NumClusters = Annotated[
    int | Literal["auto"],
    Option("Number of clusters; by default samples / 1000, from 10 to 50,000.", minimum=1),
]


@verb()
def cluster(
    catalog: Catalog | str | Path,
    *,
    k: NumClusters = "auto",
    distance: Annotated[str, Option("Distance metric.", choices=DISTANCES)] = "cosine",
    iterations: Annotated[
        int, Option("Iterations of k-means on the sample of rows.", minimum=1)
    ] = 12,
    fit_rows: Annotated[
        int | None,
        Option(
            "Rows that the centroids are fitted on.",
            minimum=1,
            default="64 per cluster, at least 65,536",
            aliases=("sample",),
        ),
    ] = None,
    full_iterations: Annotated[
        int,
        Option(
            "Iterations over every row, after those on the sample.", minimum=0, aliases=("passes",)
        ),
    ] = 2,
    memory: Annotated[
        float | None,
        Option("Memory that the fit may take, in GiB.", above=0, default="3/4 of the memory"),
    ] = None,
    within: Within = None,
    embedding: EmbeddingName = None,
    seed: Seed = 0,
    workers: Workers = 1,
    name: SetName = None,
) -> str:
    """Cluster an embedding into `k` clusters, and return the clustering's name.

    The centroids are fitted by `iterations` on a sample of the rows, then refined by
    `full_iterations` over every row; then every sample is assigned. From 50,000 clusters on that is
    done in two levels: a sample is compared with the clusters of the nearest of √k cells only, in a
    quarter of the time or less, and may get a cluster that is little farther than the nearest.
    `within` names a selection that is all of the corpus for this clustering: other samples are in
    no cluster. `memory` bounds the default sample. A killed run continues from its last finished
    iteration over every row. The default name is kmeans, or kmeans-in-SELECTION.
    """
    catalog = Catalog(catalog)
    name = name or (f"kmeans-in-{within}" if within else "kmeans")
    catalog.check_column_name(ClusteringRecord, name)
    parent = catalog.require(EmbeddingRecord, embedding)
    selection = catalog.require(SelectionRecord, within) if within else None
    # Before the files are listed: shards that come later make the clustering out of date.
    content = [catalog.embedding_fingerprint(parent.embedding)]
    all_files = catalog.vector_files(parent.embedding)
    files = catalog.vector_files(parent.embedding, within) if within else all_files
    num_samples = sum(files.values())
    if not all_files:
        raise CurateError(
            f"the embedding '{parent.embedding}' is empty: look at `curate query failures`"
        )
    if not files:
        raise CurateError(
            f"no sample of the selection '{within}' is in the embedding '{parent.embedding}': "
            "choose another --within or --embedding"
        )
    num_clusters = auto_k(num_samples) if isinstance(k, str) else k
    if num_clusters > num_samples:
        raise OptionError(f"--k {k}: give auto, or a number from 1 to the {num_samples:,} samples")
    limit = int(memory * (1 << 30)) if memory else memory_limit() * 3 // 4
    largest_file = max(all_files.values())  # files are read whole
    num_rows = _choose_fit_rows(files, num_clusters, parent.dim, fit_rows, limit, largest_file)
    settings = {
        "embedding": parent.embedding,
        "k": num_clusters,
        "distance": distance,
        "iterations": iterations,
        "fit_rows": num_rows,
        "full_iterations": full_iterations,
        "seed": seed,
    }
    parents = [parent.run_id]
    if selection:
        settings["within"] = selection.selection
        content.append(selection.fingerprint)
        parents.append(selection.run_id)
    fingerprint = provenance.fingerprint("cluster", settings, *content)
    existing = catalog.find_up_to_date(ClusteringRecord, name, fingerprint)
    if existing and storage.is_file(catalog.centroids_file(existing)):
        remove_unused_files(catalog, name)
        log.info(
            "nothing to do: '%s' is this clustering already (objective %.6g)",
            name,
            existing.objective,
        )
        return name
    if selection:
        warn_if_stale(catalog, selection)
    previous = catalog.find(ClusteringRecord, name)
    with (
        catalog.record_run(
            "cluster", name, settings, parents=parents, fingerprint=fingerprint
        ) as run_id,
        catalog.shared_tempdir(run_id) as folder,
    ):
        record = ClusteringRecord(
            clustering=name,
            embedding=parent.embedding,
            distance=distance,
            k=num_clusters,
            iterations=iterations,
            seed=seed,
            objective=0.0,  # of the assignment, which comes last
            centroids_file=centroids_filename(name, run_id),
            fit_rows=num_rows,
            num_samples=num_samples,
            fingerprint=fingerprint,
            run_id=run_id,
            full_iterations=full_iterations,
            centroids_checksum=None,
        )
        members_file = None
        if within:
            members_file = storage.join(folder, "members.npy")
            write_sample_ids(members_file, load_members(catalog, within))
        job = _ClusteringJob(
            catalog, record, files, largest_file, parent.dim, Resources(workers), members_file
        )
        record = job.assign(job.fit(), folder)
    log.info(
        "clustering '%s'%s: %s samples, k = %s, fitted on %s rows, objective %.6g",
        name,
        " replaced" if previous else "",
        f"{num_samples:,}",
        f"{num_clusters:,}",
        f"{num_rows:,}",
        record.objective,
    )
    _warn_of_empty_clusters(catalog, record)
    return name


def _warn_of_empty_clusters(catalog: Catalog, record: ClusteringRecord) -> None:
    with catalog.reading() as connection:
        ((num_used,),) = connection.execute(
            "select count(distinct cluster_id) from assignments where clustering = ?",
            [record.clustering],
        ).fetchall()
    if num_used < record.k:
        log.warning(
            "%s of %s clusters are empty: there are too few distinct vectors; lower --k",
            f"{record.k - num_used:,}",
            f"{record.k:,}",
        )


def auto_k(num_samples: int) -> int:
    """A thousandth of the corpus, from 10 to 50,000, and never more than there are samples."""
    return min(max(num_samples // 1000, 10), _MAX_AUTO_K, max(num_samples, 1))


def default_fit_rows(k: int) -> int:
    """How many rows the centroids are fitted on by default, where there are as many."""
    return max(_ROWS_PER_CENTROID * k, _MIN_FIT_ROWS)


def _choose_fit_rows(
    files: dict[str, int], k: int, dim: int, fit_rows: int | None, limit: int, largest_file: int
) -> int:
    """How many rows are sampled within a memory limit in bytes. CurateError where it is too low."""
    num_rows = min(fit_rows or default_fit_rows(k), sum(files.values()))
    num_groups = len(group_files(files))
    fit_bytes, worker_bytes = estimate_memory(num_rows, largest_file, dim, k, num_groups)
    if fit_bytes > limit and not fit_rows:
        fixed_bytes, _ = estimate_memory(0, largest_file, dim, k, num_groups)
        affordable = num_rows * (limit - fixed_bytes) // (fit_bytes - fixed_bytes)
        num_rows = max(affordable, 0)
        fit_bytes, _ = estimate_memory(num_rows, largest_file, dim, k, num_groups)
        log.warning(
            "fitting on %s rows, %.1f per centroid: no more fit into %s (see --memory)",
            f"{num_rows:,}",
            num_rows / k,
            format_bytes(limit),
        )
    needed = max(fit_bytes, worker_bytes)
    if needed > limit or num_rows < k:
        raise CurateError(
            f"k = {k:,} in {dim} dimensions takes {format_bytes(needed)} of memory, and "
            f"{format_bytes(limit)} are allowed: raise --memory, or lower --k or --fit-rows"
        )
    return num_rows


@dataclass(frozen=True)
class _ClusteringJob:
    """One clustering in the making; `members_file` has the ids of `within`, for its workers."""

    catalog: Catalog
    record: ClusteringRecord
    files: dict[str, int]
    largest_file: int  # rows
    dim: int
    resources: Resources
    members_file: str | None

    def fit(self) -> np.ndarray:
        """The centroids, from where a killed run of just this clustering stopped."""
        record = self.record
        num_groups = len(group_files(self.files))
        fit_bytes, worker_bytes = estimate_memory(
            record.fit_rows, self.largest_file, self.dim, record.k, num_groups
        )
        log.info(
            "memory: %s for the fit on %s rows, then %s per worker",
            format_bytes(fit_bytes),
            f"{record.fit_rows:,}",
            format_bytes(worker_bytes),
        )
        name = _checkpoint_filename(record.clustering, record.fingerprint)
        checkpoint_file = storage.join(self.catalog.clusterings_folder, name)
        checkpoint = load_checkpoint(checkpoint_file)
        if checkpoint is None:
            checkpoint = save_checkpoint(checkpoint_file, Checkpoint(0, self._fit_sample()))
        else:
            log.info(
                "continuing after iteration %s of %s over every row",
                checkpoint.iterations,
                record.full_iterations,
            )
        return refine_centroids(
            checkpoint,
            self.files,
            record.full_iterations,
            record.distance,
            self.resources,
            checkpoint_file=checkpoint_file,
            centroids_file=self.catalog.centroids_file(record),
            within=self.members_file,
        )

    def _fit_sample(self) -> np.ndarray:
        record = self.record
        with progress_bar("read", record.fit_rows) as advance:
            rows = sample_rows(
                self.files,
                record.fit_rows,
                record.seed,
                advance,
                lambda rows: normalize_rows(rows, record.distance),
                self.members_file,
            )
        return fit_centroids(rows, record.k, record.distance, record.iterations, record.seed)

    def assign(self, centroids: np.ndarray, folder: str) -> ClusteringRecord:
        """Assign every sample by files in `folder` and commit; returns the finished record."""
        catalog, record = self.catalog, self.record
        centroids_file = catalog.centroids_file(record)
        checksum = save_centroids(centroids_file, centroids)
        task = AssignClusters(centroids_file, checksum, record.distance, folder, self.members_file)
        objective = 0.0
        with progress_bar("assign", record.num_samples) as advance:
            for _, share in engine.map_or_raise(
                task,
                self.files,
                self.resources,
                advance=advance,
                describe_item=lambda file: f"cannot assign {storage.filename(file)}",
                in_order=True,  # of the sum
            ):
                objective += share
        record = replace(record, objective=objective, centroids_checksum=checksum)
        self._commit(record, folder)
        remove_unused_files(catalog, record.clustering, finished_run=record.run_id)
        return record

    def _commit(self, record: ClusteringRecord, folder: str) -> None:
        written = [assignment_file(folder, file) for file in self.files]
        with storage.localize(written) as paths, self.catalog.writing() as connection:
            sets.check_column_name(connection, ClusteringRecord, record.clustering)
            sets.replace_set(connection, record)
            # In the order of the files' names, which is that of the ids.
            connection.execute(
                "insert into assignments (clustering, sample_id, cluster_id, distance) "
                "select $name, sample_id, cluster_id, distance "
                "from read_parquet($files, hive_partitioning = false)",
                {"name": record.clustering, "files": quote_patterns(paths)},
            )
            sets.refresh_sample_scores(connection)


def remove_unused_files(catalog: Catalog, name: str, finished_run: int | None = None) -> bool:
    """Remove centroids of replaced and removed sets, of killed runs, and the finished checkpoint.

    Other processes keep theirs. Returns whether there were any.
    """
    has_unused = False
    with catalog.reading() as connection:
        rows = connection.execute("select centroids_file from clusterings").fetchall()
        running = connection.execute(
            "select name, run_id, fingerprint from runs "
            "where stage = 'cluster' and status = 'running'"
        ).fetchall()
    in_use = {file for (file,) in rows}
    for clustering, run_id, fingerprint in running:
        in_use.add(centroids_filename(clustering, run_id))
        if run_id != finished_run:
            in_use.add(_checkpoint_filename(clustering, fingerprint))
    prefix = rf"({re.escape(TEMPORARY_PREFIX)}\w+-)?"
    own_files = rf"{re.escape(name)}-(\d{{6,}}\.npy|[0-9a-f]{{16}}\.begun\.npz)"
    pattern = re.compile(rf"{prefix}({own_files})")
    for location in storage.list_files(catalog.clusterings_folder):
        match = pattern.fullmatch(storage.filename(location))
        if match and match.group(2) not in in_use:
            storage.delete_file(location)
            has_unused = True
    return has_unused


def centroids_filename(name: str, run_id: int) -> str:
    """A file for each run, so that the old set's centroids stay until the new set is committed."""
    return f"{name}-{run_id:06d}.npy"


def _checkpoint_filename(name: str, fingerprint: str) -> str:
    """How far a run has come, for a later run of just the same."""
    return f"{name}-{fingerprint[:16]}.begun.npz"
