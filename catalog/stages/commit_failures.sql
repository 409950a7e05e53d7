-- Record what failed in finished shards, with the reason.
insert into failures
select $embedding, shard_id, sample_id, key, member, stage, error
from read_parquet($files, hive_partitioning = false)
where error is not null
order by sample_id;
