-- The shards of an embedding with vectors of captions, in order, with their samples that have a caption.
select shard_id, count(*) as num_captions
from embedded_shards join samples using (shard_id)
where embedding = $1
    and captions_checksum <> ''
    and caption <> ''
    and sample_id not in (
        select sample_id from failures where embedding = $1 and sample_id is not null
    )
group by shard_id
order by shard_id;
