-- The easiest and the hardest samples of each group, for a picture: a sample is on one side only. The
-- temporary view `grouped` has the scores and the groups; groups beyond the $rows largest are left out.
with scored as (
    select sample_id, score, group_name from grouped where score is not null
),
ranked as (
    select
        group_name,
        sample_id,
        count(*) over (partition by group_name) as size,
        row_number() over (partition by group_name order by score, sample_id) as easy_rank,
        row_number() over (partition by group_name order by score desc, sample_id) as hard_rank
    from scored
    where group_name is not null
),
largest as (
    select group_name from ranked group by group_name order by count(*) desc, group_name limit $rows
)
select
    group_name,
    url,
    byte_offset,
    samples.num_bytes,
    easy_rank,
    hard_rank,
    easy_rank <= least($count, ceil(size / 2)) as is_easy
from ranked
join largest using (group_name)
join samples using (sample_id)
join shards using (shard_id)
where easy_rank <= least($count, ceil(size / 2)) or hard_rank <= least($count, floor(size / 2))
order by group_name, easy_rank;
