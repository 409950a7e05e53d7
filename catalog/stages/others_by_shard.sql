-- The shards with samples that are not in a selection, in order, and how many they have.
with counts as (
    select shard_id, count(*) as num_others
    from samples
    where sample_id not in (select sample_id from members where selection = ?)
    group by all
)
select shard_id, url, num_bytes, etag, checksum, num_others
from counts join shards using (shard_id)
where num_samples is not null
order by shard_id;
