-- Each update of each clustering: how far samples that came after the fit are from those that it saw.
select
    clustering,
    strftime(started_at, '%Y-%m-%d %H:%M') as updated_at,
    num_added,
    num_removed,
    num_fitted,
    num_since_fit,
    (100 * excess)::decimal(9, 2) as farther_percent,
    (100 * excess_interval)::decimal(9, 2) as plus_minus,
    (100 * far_share)::decimal(9, 2) as far_percent,
    (100 * expected_far_share)::decimal(9, 2) as far_without_drift,
    num_drifted_clusters,
    has_drifted
from clustering_updates join runs using (run_id)
order by run_id;
