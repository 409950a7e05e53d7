-- From an exported folder back to the shards it was made from, as they were read.  --param export=NAME (default: the newest)
with export as (
    select * from exports
    where export = coalesce(getvariable('export')::text, (select max_by(export, run_id) from exports))
)
select
    export.export,
    export.path,
    export.layout,
    selection,
    shard_id,
    url,
    shards.checksum as shard_checksum,
    count(*) as num_samples,
    sum(samples.num_bytes)::bigint as num_bytes
from export
join members using (selection)
join samples using (sample_id)
join shards using (shard_id)
group by all
order by shard_id;
