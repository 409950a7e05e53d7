-- Whether pruning by a scoring makes classes more uneven: the size of the smaller over that of the larger, mean over pairs of classes.  --param keep=0.5
-- 1 is an even data set (the class balance score of Sorscher et al. 2022). A scoring amplifies imbalance if
-- what it keeps is less even than as many samples drawn at random.
with scored as (
    select
        scoring,
        label,
        score,
        hash(sample_id) as tiebreak,
        count(*) over (partition by scoring) as num_samples
    from scores join samples using (sample_id)
    where score is not null and label is not null
),
ranked as (
    select
        scoring,
        label,
        coalesce(getvariable('keep')::double, 0.5) * num_samples as num_kept,
        row_number() over (partition by scoring order by score desc, tiebreak) as hard_rank,
        row_number() over (partition by scoring order by score, tiebreak) as easy_rank,
        row_number() over (partition by scoring order by tiebreak) as random_rank
    from scored
),
sizes as (
    select
        scoring,
        label,
        count(*) as corpus,
        count(*) filter (random_rank <= num_kept) as random,
        count(*) filter (hard_rank <= num_kept) as hardest,
        count(*) filter (easy_rank <= num_kept) as easiest
    from ranked
    group by scoring, label
),
long as (
    unpivot sizes on corpus, random, hardest, easiest into name subset value num_samples
),
evenness as (
    select
        a.scoring,
        a.subset,
        avg(least(a.num_samples, b.num_samples) / greatest(a.num_samples, b.num_samples, 1)) as evenness
    from long as a join long as b on a.scoring = b.scoring and a.subset = b.subset and a.label < b.label
    group by a.scoring, a.subset
),
wide as (
    pivot evenness on subset in ('corpus', 'random', 'hardest', 'easiest') using any_value(evenness) group by scoring
)
select
    scoring,
    round(corpus, 4) as corpus,
    round(random, 4) as random,
    round(hardest, 4) as hardest,
    round(easiest, 4) as easiest,
    hardest < random as hardest_amplifies,
    easiest < random as easiest_amplifies
from wide
order by hardest, scoring;
