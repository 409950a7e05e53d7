-- Put one finished shard into the corpus and into an embedding; $file is what its worker left.
insert into samples
select sample_id, shard_id, key, label, caption, byte_offset, num_bytes, width, height
from read_parquet($file, hive_partitioning = false) as found
where error is null and not exists (select 1 from samples where samples.sample_id = found.sample_id)
order by sample_id;
