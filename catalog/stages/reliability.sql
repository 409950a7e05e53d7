-- Spearman's rank correlation between the scores by the two halves of a probe; ties share the mean of their ranks.
with halves as (
    select half_0, half_1 from read_parquet($files, hive_partitioning = false)
    where half_0 is not null and half_1 is not null
),
ranks as (
    select rank() over (order by half_0) + (count(*) over (partition by half_0) - 1) / 2 as rank_0,
           rank() over (order by half_1) + (count(*) over (partition by half_1) - 1) / 2 as rank_1
    from halves
)
-- Scores that are all the same have no correlation.
select case when stddev_pop(rank_0) > 0 and stddev_pop(rank_1) > 0 then corr(rank_0, rank_1) end from ranks;
