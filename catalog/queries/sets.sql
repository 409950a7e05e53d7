-- Every named set in the catalog, what it was made from, and when.
select kind, name, made_from, started_at, status from lineage order by started_at, kind, name;
