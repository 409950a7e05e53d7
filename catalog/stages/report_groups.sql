-- The samples that a report may show, a row for each class, each cluster and the whole corpus: the
-- $ends easiest and hardest by $scoring, and of what $selection drops the $dropped easiest, hardest and
-- some at random. A random order is that of a hash of the ids, so that the same page is drawn again.
-- Ties are broken by the id. Of classes and clusters only the $groups are named that lose most;
-- where $has_classes is false, labels are no classes.
with scored as (
    select
        sample_id,
        score,
        case when $has_classes then label end as label,
        cluster_id,
        $selection is not null and members.sample_id is null as is_dropped,
        {'score': score, 'id': sample_id} as from_easy,
        {'score': -score, 'id': sample_id} as from_hard
    from samples
    left join (select sample_id, score from scores where scoring = $scoring) using (sample_id)
    left join (select sample_id, cluster_id from assignments where clustering = $clustering) using (sample_id)
    left join (select sample_id from members where selection = $selection) as members using (sample_id)
),
grouped as (
    select
        case
            when grouping(label) = 0 then 'class'
            when grouping(cluster_id) = 0 then 'cluster'
            else 'all'
        end as kind,
        label,
        cluster_id,
        count(*) as num_samples,
        count(*) filter (is_dropped) as num_dropped,
        arg_min(sample_id, from_easy, $ends) filter (score is not null) as easy,
        arg_min(sample_id, from_hard, $ends) filter (score is not null) as hard,
        arg_min(sample_id, from_easy, $dropped) filter (score is not null and is_dropped) as dropped_easy,
        arg_min(sample_id, from_hard, $dropped) filter (score is not null and is_dropped) as dropped_hard,
        arg_min(sample_id, hash(sample_id), $dropped) filter (is_dropped) as dropped_random,
        arg_min(sample_id, hash(sample_id), $ends) as random
    from scored
    group by grouping sets ((), (label), (cluster_id))
)
select
    kind,
    case kind when 'class' then label when 'cluster' then cluster_id::text else '' end as name,
    num_samples,
    num_dropped,
    coalesce(easy, []) as easy,
    coalesce(hard, []) as hard,
    coalesce(dropped_easy, []) as dropped_easy,
    coalesce(dropped_hard, []) as dropped_hard,
    coalesce(dropped_random, []) as dropped_random,
    random
from grouped
where name is not null
qualify row_number() over (partition by kind order by num_dropped desc, num_samples desc, name) <= $groups
order by kind, num_dropped desc, num_samples desc, name;
