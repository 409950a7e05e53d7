-- Mean score and spread of each class: which classes a scoring calls easy or hard.  --param scoring=NAME
select label, count(*) as num_samples, round(avg(score), 5) as mean_score, round(stddev_samp(score), 5) as deviation,
       round(median(score), 5) as median_score
from scores join samples using (sample_id)
where scoring = coalesce(getvariable('scoring'), (select last(scoring order by run_id) from scorings))
group by label order by mean_score desc;
