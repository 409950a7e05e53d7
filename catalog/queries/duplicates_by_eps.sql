-- How many duplicates there are up to each threshold, to that of the set.  --param deduplication=NAME
with steps as (
    select unnest([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3])::double as eps
    union
    select eps from deduplications where deduplication = default_deduplication()
)
select
    steps.eps,
    count(distinct sample_id) as num_duplicates,
    count(distinct group_id) as num_groups
from steps
join deduplications on deduplication = default_deduplication()
join duplicates using (deduplication)
where not stays
    and (kind <> 'near' or similarity > 1 - steps.eps)
    and steps.eps <= coalesce(deduplications.eps, 0)
group by steps.eps
order by steps.eps;
