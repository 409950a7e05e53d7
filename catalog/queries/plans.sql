-- What `curate plan` predicted for each stage, next to what the runs of that stage since then took, in seconds.
with plans as (
    select run_id, started_at as planned_at, arguments, unnest(from_json(
        arguments->'stages',
        '[{"stage": "varchar", "samples": "bigint", "seconds": "double", "memory": "bigint", "disk": "bigint"}]'
    )) as row
    from runs
    where stage = 'plan'
),
finished as (
    -- each run belongs to the last plan before it
    select runs.*, (select max(plans.run_id) from plans where plans.run_id < runs.run_id) as plan_id
    from runs
    where stage <> 'plan' and status = 'done'
)
select
    planned_at,
    row.stage as stage,
    row.samples as samples,
    round(row.seconds, 1) as planned_seconds,
    finished.name,
    round(epoch(finished.finished_at - finished.started_at), 1) as seconds
from plans left join finished on finished.plan_id = plans.run_id and finished.stage = row.stage
order by
    planned_at,
    plans.run_id,
    list_position(['embed', 'cluster', 'score', 'select', 'export'], row.stage),
    finished.run_id;
