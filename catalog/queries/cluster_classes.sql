-- Which classes each cluster holds: its most frequent class, and its share of those with a label (purity).  --param clustering=NAME
with counts as (
    select cluster_id, label, count(*) as num_samples
    from assignments join samples using (sample_id)
    where clustering = default_clustering()
    group by cluster_id, label
)
select cluster_id, sum(num_samples)::bigint as num_samples,
       max_by(label, num_samples) filter (where label is not null) as most_frequent_label,
       round(max(num_samples) filter (where label is not null) / sum(num_samples) filter (where label is not null), 4) as purity
from counts group by cluster_id order by purity, cluster_id;
