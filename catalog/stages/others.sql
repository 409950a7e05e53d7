-- The samples that are not in a selection, with ids from $first to before $stop, in order.
select sample_id, shard_id, byte_offset, num_bytes, key, null::float as weight, null::integer as repeats
from samples
where sample_id >= $first and sample_id < $stop
and sample_id not in (
    select sample_id from members
    where selection = $selection and sample_id >= $first and sample_id < $stop
)
order by 1;
