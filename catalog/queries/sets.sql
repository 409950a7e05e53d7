-- Every named set in the catalog, what it was made from, and when; out_of_date: what it was made from has changed since.
select
    kind,
    name,
    made_from,
    strftime(started_at, '%Y-%m-%d %H:%M') as made_at,
    status,
    case when out_of_date then 'yes' else '' end as out_of_date
from lineage
order by run_id;
