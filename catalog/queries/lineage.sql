-- How a set came about, back to the embedding, as it was when it was made.  --param name=NAME (default: the newest)
with recursive chain as (
    select 0 as step, runs.* from runs
    where run_id = coalesce(
        case when getvariable('name') is not null then coalesce(
            (select max(run_id) from named_sets where name = getvariable('name')::text),
            error('no set is called ' || getvariable('name')::text)
        ) end,
        (select max(run_id) from named_sets)
    )
    union
    select chain.step + 1, parent.*
    from chain join runs as parent on list_contains(chain.parent_run_ids, parent.run_id)
)
select
    min(step) as step,
    stage,
    name,
    arguments,
    version,
    started_at,
    left(fingerprint, 12) as fingerprint
from chain
group by all
order by step, started_at desc;
