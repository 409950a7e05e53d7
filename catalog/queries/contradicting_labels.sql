-- Duplicates with different labels, of which all but one must be wrong; exact ones first.  --param deduplication=NAME
with contradicting as (
    select group_id, coalesce(bool_or(kind <> 'near'), false) as has_exact
    from duplicates join samples using (sample_id)
    where deduplication = default_deduplication()
    group by group_id
    having count(distinct label) > 1
)
select group_id, label, url, key, stays, kind, round(similarity, 5) as similarity
from duplicates
join contradicting using (group_id)
join samples using (sample_id)
join shards using (shard_id)
where deduplication = default_deduplication()
order by has_exact desc, group_id, stays desc, duplicates.similarity desc, sample_id;
