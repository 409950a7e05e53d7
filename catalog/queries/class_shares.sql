-- Each class's share of the corpus and of its hardest part by each scoring; growth above 1 says that the scoring favours it.  --param keep=0.5 --param scoring=NAME
with ranked as (
    select
        scoring,
        label,
        row_number() over (partition by scoring order by score desc, hash(sample_id)) as hard_rank,
        count(*) over (partition by scoring) as num_samples
    from scores join samples using (sample_id)
    where score is not null and scoring = coalesce(getvariable('scoring')::text, scoring)
),
sizes as (
    select
        scoring,
        label,
        any_value(num_samples) as num_samples,
        count(*) as class_size,
        count(*) filter (hard_rank <= coalesce(getvariable('keep')::double, 0.5) * num_samples) as hardest
    from ranked
    group by scoring, label
)
select
    scoring,
    label,
    class_size as num_samples,
    round(class_size / num_samples, 4) as share,
    round(hardest / sum(hardest) over (partition by scoring), 4) as share_of_hardest,
    round((hardest / sum(hardest) over (partition by scoring)) / (class_size / num_samples), 3) as growth
from sizes
order by scoring, growth desc, label;
