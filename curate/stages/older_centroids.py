"""Which sets depend on centroids that were fitted before some of their samples came."""

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord


def find_older_centroids(catalog: Catalog) -> dict[tuple[str, str], str]:
    """These sets, by kind and name, each with what is known of the difference.

    That is how many samples the fit saw and, of a selection that was compared with one made from
    scratch (`curate update --compare`), how many members would be others.
    """
    marks: dict[tuple[str, str], str] = {}
    with catalog.reading() as connection:
        updates = connection.execute(
            "select clustering, num_fitted, num_since_fit from clustering_updates "
            "join clusterings using (clustering, run_id) where num_since_fit > 0 order by run_id"
        ).fetchall()
        compared = connection.execute(
            "select selection, num_different / scratch_comparisons.num_samples "
            "from scratch_comparisons join selections using (selection, fingerprint)"
        ).fetchall()
        for clustering, num_fitted, num_since_fit in updates:
            record = sets.find_set(connection, ClusteringRecord, clustering)
            if record is None:
                continue
            mark = f"fitted on {num_fitted:,} of {num_fitted + num_since_fit:,} samples"
            for kind_and_name in [
                (record.kind, record.name),
                *sets.list_dependents(connection, [record]),
            ]:
                marks[kind_and_name] = mark
    for selection, share in compared:
        if (key := ("selection", selection)) in marks:
            marks[key] += f", {100 * share:.1f}% other members from scratch"
    return marks
