-- How alike the selections are: shared members over all members of both (Jaccard).
with sizes as (select selection, count(*) as num_samples from members group by selection),
shared as (
    select a.selection as a, b.selection as b, count(*) as num_shared
    from members as a join members as b on a.sample_id = b.sample_id and a.selection < b.selection
    group by a.selection, b.selection
)
select a, b, num_shared, round(num_shared / (x.num_samples + y.num_samples - num_shared), 4) as jaccard
from shared join sizes as x on x.selection = a join sizes as y on y.selection = b
order by jaccard desc, a, b;
