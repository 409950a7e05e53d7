-- How alike the scorings rank: Spearman's rank correlation of each pair, over at most about 200,000 samples.
with chosen as (
    select scoring, sample_id, score from scores
    -- A corpus beyond that is thinned by a hash of the ids, the same samples for every scoring.
    where score is not null and hash(sample_id) % greatest((select count(*) from samples) // 200000, 1) = 0
),
-- Ties share the mean of their ranks.
ranked as (
    select scoring, sample_id, rank() over (partition by scoring order by score)
               + (count(*) over (partition by scoring, score) - 1) / 2 as place
    from chosen
)
select a.scoring as a, b.scoring as b, count(*) as num_samples,
       case when stddev_pop(a.place) > 0 and stddev_pop(b.place) > 0 then round(corr(a.place, b.place), 4) end as spearman
from ranked as a join ranked as b on a.sample_id = b.sample_id
group by all
order by a, b;
