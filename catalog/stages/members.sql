-- The members of a selection with sample ids from $first to before $stop, in order.
select samples.sample_id, shard_id, byte_offset, num_bytes, key, weight, repeats
from members join samples using (sample_id)
where selection = $selection
and members.sample_id >= $first and members.sample_id < $stop
and samples.sample_id >= $first and samples.sample_id < $stop
order by 1;
