"""How far selections under older centroids are from ones made from scratch."""

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, ScoringRecord, SelectionRecord
from curate.execution.types import Resources
from curate.progress import log
from curate.stages.cluster.stage import cluster, default_fit_rows
from curate.stages.remove import remove
from curate.stages.update.clusterings import count_fitted
from curate.stages.update.scorings import score_again
from curate.stages.update.selections import draw_again, load_source

_SUFFIX = "@scratch"  # of the sets made for the comparison


def fit_again(
    catalog: Catalog, record: ClusteringRecord, workers: int, name: str | None = None
) -> str:
    """Cluster with new centroids, with the options of a clustering; returns the name.

    Where it was fitted on all samples, or on as many as by default, so is the new one.
    """
    arguments = catalog.run_arguments(record.run_id)
    usual_rows = min(default_fit_rows(record.k), count_fitted(catalog, record))
    return cluster(
        catalog,
        k=record.k,
        distance=record.distance,
        iterations=record.iterations,
        fit_rows=None if record.fit_rows >= usual_rows else record.fit_rows,
        full_iterations=record.full_iterations,
        within=arguments.get("within"),
        embedding=record.embedding,
        seed=record.seed,
        workers=workers,
        name=name or record.clustering,
    )


def compare_with_scratch(catalog: Catalog, workers: int) -> None:
    """Make what depends on older centroids from scratch, count the differences, and remove it.

    After a kill, the next call goes on with what there is.
    """
    selections = catalog.list_names(SelectionRecord)
    num_compared = 0
    for selection in selections:
        record = catalog.require(SelectionRecord, selection)
        scoring, clustering = find_frozen_source(catalog, record)
        if scoring is None or clustering is None:
            continue
        scratch_clustering = fit_again(
            catalog, clustering, workers, clustering.clustering + _SUFFIX
        )
        scratch_scoring = score_again(
            catalog,
            scoring,
            Resources(workers),
            clustering=scratch_clustering,
            name=scoring.scoring + _SUFFIX,
        )
        source = load_source(catalog, record)
        within = f"{source.within}{_SUFFIX}"
        new_selection = draw_again(
            catalog,
            record,
            source,
            within=within if within in catalog.list_names(SelectionRecord) else None,
            scoring=scratch_scoring,
            selection=selection + _SUFFIX,
        )
        _store_difference(catalog, record, new_selection)
        num_compared += 1
    if not num_compared:
        log.info("nothing to compare: no selection is by centroids from before an update")
    for record_type in (SelectionRecord, ScoringRecord, ClusteringRecord):
        names = [name for name in catalog.list_names(record_type) if name.endswith(_SUFFIX)]
        if names:
            remove(catalog, record_type.kind, names, force=True)


def find_frozen_source(
    catalog: Catalog, record: SelectionRecord
) -> tuple[ScoringRecord | None, ClusteringRecord | None]:
    """The scoring and the clustering that a selection was drawn by, where that was updated."""
    scoring = catalog.find(ScoringRecord, record.scoring) if record.scoring else None
    if scoring is None or scoring.source is None or record.selection.endswith(_SUFFIX):
        return None, None
    clustering = catalog.find(ClusteringRecord, scoring.source)
    if clustering is None or "update_of" not in catalog.run_arguments(clustering.run_id):
        return None, None
    return scoring, clustering


def _store_difference(catalog: Catalog, record: SelectionRecord, new_selection: str) -> None:
    with (
        catalog.record_run("update", record.selection, {"compare": new_selection}) as run_id,
        catalog.writing() as connection,
    ):
        ((num_different,),) = connection.execute(
            "select count(*) from members where selection = $1 and sample_id not in "
            "(select sample_id from members where selection = $2)",
            [record.selection, new_selection],
        ).fetchall()
        connection.execute(
            "delete from scratch_comparisons where selection = ?", [record.selection]
        )
        row = {
            "selection": record.selection,
            "fingerprint": record.fingerprint,
            "num_samples": record.num_samples,
            "num_different": num_different,
            "run_id": run_id,
        }
        sets.insert_row(connection, "scratch_comparisons", row)
    log.info(
        "selection '%s': %s of %s members (%.2f%%) would be others, had it been made from scratch",
        record.selection,
        f"{num_different:,}",
        f"{record.num_samples:,}",
        100 * num_different / max(record.num_samples, 1),
    )
