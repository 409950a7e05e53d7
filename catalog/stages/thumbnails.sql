-- The samples that a report shows: the easiest and hardest of each class and of each cluster by $scoring, and
-- some at random. $of_class and $of_cluster are how many of each end. With each sample its ranks from the
-- easy and from the hard end: of all, of its class, of its cluster; null where it has no score.
with scored as (
    select sample_id, score, label, cluster_id
    from samples
    left join (select sample_id, score from scores where scoring = $scoring) using (sample_id)
    left join (select sample_id, cluster_id from assignments where clustering = $clustering) using (sample_id)
),
ranked as (
    select
        *,
        row_number() over (partition by label order by score nulls last, sample_id) as easy_of_class,
        row_number() over (partition by label order by score desc nulls last, sample_id) as hard_of_class,
        row_number() over (partition by cluster_id order by score nulls last, sample_id) as easy_of_cluster,
        row_number() over (partition by cluster_id order by score desc nulls last, sample_id) as hard_of_cluster,
        row_number() over (order by score nulls last, sample_id) as easy_of_all,
        row_number() over (order by score desc nulls last, sample_id) as hard_of_all,
        row_number() over (order by hash(sample_id)) as random_rank
    from scored
),
-- The ends of all first, then those of classes, then of clusters, then random samples: where there are too
-- many, the last are left out.
prioritized as (
    select *, case
        when least(easy_of_all, hard_of_all) <= $of_class then 0
        when least(easy_of_class, hard_of_class) <= $of_class then least(easy_of_class, hard_of_class)
        when least(easy_of_cluster, hard_of_cluster) <= $of_cluster
            then 1000 + least(easy_of_cluster, hard_of_cluster)
        else 1000000 + random_rank
    end as priority
    from ranked
)
select sample_id, case when score is not null then {
    'all': [easy_of_all, hard_of_all],
    'class': [easy_of_class, hard_of_class],
    'cluster': [easy_of_cluster, hard_of_cluster]
} end as ranks
from prioritized
order by priority, hash(sample_id)
limit $most;
