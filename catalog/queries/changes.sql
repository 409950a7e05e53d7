-- Who came to a selection and who left it when it was drawn last, and why.  --param selection=NAME --param n=100
select
    if(has_come, 'came', 'left') as change,
    reason,
    sample_id,
    key,
    label,
    url
from membership_changes
left join samples using (sample_id)
left join shards using (shard_id)
where selection = coalesce(getvariable('selection')::text, (
    select selection from selections
    where selection in (select selection from membership_changes) order by run_id desc limit 1
))
order by has_come desc, reason, sample_id
limit coalesce(getvariable('n')::bigint, 100);
