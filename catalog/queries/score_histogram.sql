-- The distribution of a scoring in 20 equal steps.  --param scoring=NAME
with chosen as (
    select score from scores
    where score is not null
      and scoring = coalesce(getvariable('scoring'), (select last(scoring order by run_id) from scorings))
),
bounds as (select min(score) as low, max(score) as high from chosen),
steps as (
    select low, high, least(floor(20 * (score - low) / nullif(high - low, 0))::int, 19) as step
    from chosen cross join bounds
)
select round(low + coalesce(step, 0) * (high - low) / 20, 5) as from_score, count(*) as num_samples,
       bar(count(*), 0, max(count(*)) over (), 40) as picture
from steps group by low, high, step order by step;
