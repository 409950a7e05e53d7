-- The shards that members of a selection belong to, in order, and how many.
with counts as (
    -- the shard is in the upper bits of the id, as in `samples`, which need not be read
    select sample_id >> 24 as shard_id, count(*) as num_members
    from members
    where selection = ?
    group by all
)
select shard_id, url, num_bytes, etag, checksum, num_members
from counts join shards using (shard_id)
where num_samples is not null
order by shard_id;
