-- Each selection against random samples and against everything, in points of accuracy with 95% intervals.
select
    validation,
    selection,
    test,
    keep,
    num_samples,
    seeds,
    round(pruned, 2) as pruned,
    round(random, 2) as random,
    round("full", 2) as "full",
    round(delta_vs_random, 2) as delta_vs_random,
    round(delta_vs_random_interval, 2) as "± random",
    round(delta_vs_full, 2) as delta_vs_full,
    round(delta_vs_full_interval, 2) as "± full"
from pruned_vs_random
order by validation, keep desc, selection, test;
