-- How alike the scorings rank: Spearman's rank correlation of each pair, over at most about 100,000 samples that both have scored.
with chosen as (
    select scoring, sample_id, score from scores
    -- A corpus beyond that is thinned by a hash of the ids, the same samples for every scoring.
    where score is not null and hash(sample_id) % greatest((select count(*) from samples) // 100000, 1) = 0
),
pairs as (
    select a.scoring as a, b.scoring as b, a.score as x, b.score as y
    from chosen as a join chosen as b on a.sample_id = b.sample_id and a.scoring <= b.scoring
),
-- Ties share the mean of their ranks.
ranked as (
    select a, b, rank() over (partition by a, b order by x) + (count(*) over (partition by a, b, x) - 1) / 2 as of_x,
           rank() over (partition by a, b order by y) + (count(*) over (partition by a, b, y) - 1) / 2 as of_y
    from pairs
),
found as (
    select a, b, count(*) as num_samples,
           case when stddev_pop(of_x) > 0 and stddev_pop(of_y) > 0 then round(corr(of_x, of_y), 4) end as spearman
    from ranked group by a, b
)
from found union from (select b, a, num_samples, spearman from found) order by a, b;
