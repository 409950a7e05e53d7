-- Mean score and spread of each class: which classes a scoring calls easy or hard.  --param scoring=NAME
select scoring, label, count(*) as num_samples, round(avg(score), 5) as mean_score,
       round(stddev_samp(score), 5) as deviation, round(median(score), 5) as median_score
from scores join samples using (sample_id)
where scoring = default_scoring()
group by scoring, label order by mean_score desc, label;
