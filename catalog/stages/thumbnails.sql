-- The samples that a report shows: the easiest and hardest of each class and of each cluster by $scoring, and some at random.
-- $count is how many of each end and group.
with known as (
    select sample_id, score, label, cluster_id
    from samples
    left join (select sample_id, score from scores where scoring = $scoring) using (sample_id)
    left join (select sample_id, cluster_id from assignments where clustering = $clustering) using (sample_id)
),
ranked as (
    select *, row_number() over (partition by label order by score nulls last, sample_id) as easy_of_class,
           row_number() over (partition by label order by score desc nulls last, sample_id) as hard_of_class,
           row_number() over (partition by cluster_id order by score nulls last, sample_id) as easy_of_cluster,
           row_number() over (partition by cluster_id order by score desc nulls last, sample_id) as hard_of_cluster,
           row_number() over (order by hash(sample_id)) as drawn
    from known
),
-- Ends of classes first, then of clusters, then what was drawn: where there are too many groups, the last give way.
placed as (
    select *, case when least(easy_of_class, hard_of_class) <= $count then least(easy_of_class, hard_of_class)
                   when least(easy_of_cluster, hard_of_cluster) <= $count then 1000 + least(easy_of_cluster, hard_of_cluster)
                   else 1000000 + drawn end as turn
    from ranked
)
select sample_id from placed order by turn, hash(sample_id) limit $most;
