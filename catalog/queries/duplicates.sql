-- Groups of duplicates, the largest first, the sample that stays at the top.  --param deduplication=NAME --param n=100
select group_id, sample_id, url, key, label, stays, kind, round(similarity, 5) as similarity, other_url, other_key
from duplicates join samples using (sample_id) join shards using (shard_id)
where deduplication = default_deduplication()
order by group_id, stays desc, duplicates.similarity desc, sample_id
limit coalesce(getvariable('n')::bigint, 100);
