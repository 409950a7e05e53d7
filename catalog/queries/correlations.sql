-- How alike the scorings rank: Spearman's rank correlation of each pair, over at most about 100,000 samples that both have scored.
with subset as (
    select scoring, sample_id, score from scores
    -- A larger corpus is thinned by a hash of the ids, the same samples for every scoring.
    where score is not null and hash(sample_id) % greatest((select count(*) from samples) // 100000, 1) = 0
),
pairs as (
    select a.scoring as a, b.scoring as b, a.score as x, b.score as y
    from subset as a join subset as b on a.sample_id = b.sample_id and a.scoring <= b.scoring
),
-- Ties share the mean of their ranks.
ranked as (
    select
        a,
        b,
        rank() over (partition by a, b order by x) + (count(*) over (partition by a, b, x) - 1) / 2 as x_rank,
        rank() over (partition by a, b order by y) + (count(*) over (partition by a, b, y) - 1) / 2 as y_rank
    from pairs
),
correlated as (
    select
        a,
        b,
        count(*) as num_samples,
        case when stddev_pop(x_rank) > 0 and stddev_pop(y_rank) > 0 then round(corr(x_rank, y_rank), 4) end as spearman
    from ranked
    group by a, b
)
from correlated
union
from (select b, a, num_samples, spearman from correlated)
order by a, b;
