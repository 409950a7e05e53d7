-- Put finished shards into the corpus. $files are what their workers wrote, in the order of the ids,
-- which lie from $first to $last.
with finished as (
    -- files of a run that an earlier version began have no checksums
    select null::bigint as image_bytes, null::ubigint as image_checksum, null::ubigint as pixels_checksum
    where false
    union all by name
    select * from read_parquet($files, hive_partitioning = false)
)
insert into samples (
    sample_id, shard_id, key, label, caption, byte_offset, num_bytes, width, height, member,
    image_bytes, image_checksum, pixels_checksum
)
select
    sample_id, shard_id, key, label, caption, byte_offset, num_bytes, width, height, member,
    image_bytes, image_checksum, pixels_checksum
from finished
where error is null and not exists (
    -- the bounds let the database skip the rest of the corpus
    select 1 from samples
    where samples.sample_id = finished.sample_id and samples.sample_id between $first and $last
);
