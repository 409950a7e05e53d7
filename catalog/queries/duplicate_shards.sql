-- Shards whose bytes are the same, so that their samples count twice.
select checksum, count(*) as num_shards, list(url order by shard_id) as urls
from shards
where checksum is not null
group by checksum
having count(*) > 1
order by num_shards desc;
