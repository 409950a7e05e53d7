-- The samples of lowest score, the first to go.  --param scoring=NAME --param n=20 --param label=3
select scoring, sample_id, url, key, label, round(score, 5) as score
from scores join samples using (sample_id) join shards using (shard_id)
where scoring = default_scoring() and score is not null
  and (getvariable('label') is null or label = getvariable('label')::text)
order by score, sample_id
limit coalesce(getvariable('n')::bigint, 20);
