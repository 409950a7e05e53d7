-- What each validation says of each selection, against everything and against random samples.
select
    validation,
    selection,
    test,
    baseline,
    round(accuracy, 2) as accuracy,
    round(difference, 2) as difference,
    round(half_width, 2) as "±",
    margin,
    verdict,
    seeds,
    num_test
from verdicts
order by validation, selection, test, baseline;
