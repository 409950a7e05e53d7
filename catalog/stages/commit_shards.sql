-- Put finished shards into the corpus. $files are what their workers wrote, in the order of the ids,
-- which lie from $first to $last.
insert into samples
select sample_id, shard_id, key, label, caption, byte_offset, num_bytes, width, height, member
from read_parquet($files, hive_partitioning = false) as finished
where error is null and not exists (
    -- the bounds let the database skip the rest of the corpus
    select 1 from samples
    where samples.sample_id = finished.sample_id and samples.sample_id between $first and $last
);
