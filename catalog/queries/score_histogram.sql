-- The distribution of a scoring in 20 equal steps.  --param scoring=NAME
with scored as (
    select scoring, score from scores where score is not null and scoring = default_scoring()
),
bounds as (
    select scoring, min(score) as low, max(score) as high from scored group by scoring
),
counts as (
    select
        coalesce(least(floor(20 * (score - low) / nullif(high - low, 0))::int, 19), 0) as step,
        count(*) as num_samples
    from scored cross join bounds
    group by step
)
select
    scoring,
    round(low + step * (high - low) / 20, 5) as from_score,
    round(low + (step + 1) * (high - low) / 20, 5) as to_score,
    coalesce(num_samples, 0) as num_samples,
    bar(coalesce(num_samples, 0), 0, max(num_samples) over (), 40) as picture
from bounds
cross join range(20) as steps(step)
left join counts using (step)
order by step;
