-- The easiest and the hardest samples of each group, for a picture: a sample stands on one side only.
-- $by is label or cluster; groups beyond the $rows largest are left out.
with known as (
    select sample_id, score,
           case $by when 'label' then 'class ' || label else 'cluster ' || cluster_id end as group_name
    from scores join samples using (sample_id)
    left join (select sample_id, cluster_id from assignments where clustering = $clustering) using (sample_id)
    where scoring = $scoring and score is not null
),
placed as (
    select group_name, sample_id, count(*) over (partition by group_name) as size,
           row_number() over (partition by group_name order by score, sample_id) as easy,
           row_number() over (partition by group_name order by score desc, sample_id) as hard
    from known where group_name is not null
),
largest as (select group_name from placed group by group_name order by count(*) desc, group_name limit $rows)
select group_name, url, byte_offset, samples.num_bytes, easy, hard, easy <= least($count, ceil(size / 2)) as is_easy
from placed join largest using (group_name) join samples using (sample_id) join shards using (shard_id)
where easy <= least($count, ceil(size / 2)) or hard <= least($count, floor(size / 2))
order by group_name, easy;
