-- From an exported folder back to the shards it was made from, as they were read.  --param export=NAME (default: the newest)
with chosen as (
    select * from exports
    where export = coalesce(getvariable('export')::text, (select max_by(export, run_id) from exports))
)
select export, chosen.path, chosen.layout, selection, shard_id, url, shards.fingerprint as shard_fingerprint, count(*) as num_samples,
       sum(samples.num_bytes)::bigint as num_bytes
from chosen join members using (selection) join samples using (sample_id) join shards using (shard_id)
group by all order by shard_id;
