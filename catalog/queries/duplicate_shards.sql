-- Shards whose bytes are the same, so that their samples count twice.
select fingerprint, count(*) as num_shards, list(url order by shard_id) as urls
from shards where fingerprint is not null
group by fingerprint having count(*) > 1 order by num_shards desc;
