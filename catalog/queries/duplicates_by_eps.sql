-- How many duplicates there are up to each threshold.  --param deduplication=NAME
with steps as (
    select unnest([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]) as eps
)
select
    steps.eps,
    count(distinct sample_id) as num_duplicates,
    count(distinct group_id) as num_groups
from steps
join deduplications on deduplication = default_deduplication()
join duplicates using (deduplication)
where not stays and (kind <> 'near' or similarity > 1 - steps.eps)
group by steps.eps
order by steps.eps;
