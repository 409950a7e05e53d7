-- The $rows largest groups of a deduplication, $count samples of each: the one that stays, then the most similar.
with sizes as (
    select group_id, count(*) as size
    from duplicates where deduplication = $deduplication and other_key is null
    group by group_id
    having size > 1
    order by size desc, group_id
    limit $rows
),
ranked as (
    select
        dense_rank() over (order by size desc, group_id) as number,
        size,
        sample_id,
        stays,
        similarity,
        row_number() over (partition by group_id order by stays desc, similarity desc, sample_id) as position
    from sizes join duplicates using (group_id)
    where deduplication = $deduplication
)
select number, size, url, byte_offset, samples.num_bytes, stays, similarity
from ranked
join samples using (sample_id)
join shards using (shard_id)
where position <= $count
order by number, position;
