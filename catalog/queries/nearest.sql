-- The nearest neighbours of a sample by cosine.  --param sample_id=ID --param n=10 --param embedding=NAME (default: the newest)
with candidates as (
    select * from vectors('*')
    where embedding = coalesce(
        getvariable('embedding')::text,
        (select embedding from embeddings order by run_id desc limit 1)
    )
),
query as (
    select vector from candidates
    where sample_id = coalesce(getvariable('sample_id')::bigint, error('which sample? give --param sample_id=ID'))
)
select
    embedding,
    samples.sample_id,
    key,
    label,
    round(list_cosine_similarity(candidates.vector, query.vector)::double, 5) as cosine
from candidates
cross join query
join samples on samples.sample_id = candidates.sample_id
order by cosine desc, samples.sample_id
limit coalesce(getvariable('n')::bigint, 10);
