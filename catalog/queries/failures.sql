-- What could not be used, and why.
select embedding, url, key, member, stage, error
from failures join shards using (shard_id)
order by embedding, shard_id, sample_id;
