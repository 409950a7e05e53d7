-- The nearest neighbours of a sample by cosine, in an embedding.  --param sample_id=ID --param n=10 
-- Where there are several embeddings also --param embedding=NAME
with vectors as (
    select * from embedding(coalesce(getvariable('embedding'), '*'))
),
wanted as (select vector from vectors where sample_id = getvariable('sample_id')::bigint)
select samples.sample_id, key, label, round(list_cosine_similarity(vectors.vector, wanted.vector)::double, 5) as cosine
from vectors cross join wanted join samples on samples.sample_id = vectors.sample_id
order by cosine desc, samples.sample_id
limit coalesce(getvariable('n')::bigint, 10);
