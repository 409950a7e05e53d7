-- Every shard with its samples, embedded and failed: num_samples = num_embedded + num_failed.
select shard_id, url, embedding, num_samples, num_embedded, num_failed, shards.num_bytes, complete
from shards left join embedded_shards using (shard_id)
order by shard_id, embedding;
