-- Views and macros for people who query. None depends on where the folder lies.
-- One more, sample_scores (a column for each clustering and scoring), is made anew by cluster and score.

-- How each selection treats each class; num_kept is 0 for a class that is gone. Samples without a label are a class too.
create or replace view class_balance as
with sizes as (select label, count(*) as num_samples from samples group by label),
kept as (
    select selection, label, count(*) as num_kept
    from members join samples using (sample_id)
    group by selection, label
)
select selections.selection, sizes.label, sizes.num_samples, coalesce(num_kept, 0) as num_kept,
       coalesce(num_kept, 0) / sizes.num_samples as kept_share
from selections cross join sizes
left join kept on kept.selection = selections.selection and kept.label is not distinct from sizes.label;

create or replace view cluster_sizes as
select clustering, cluster_id, count(*) as num_samples,
       avg(distance::double) as mean_distance, max(distance::double) as max_distance
from assignments group by clustering, cluster_id;

create or replace view named_sets as
select 'embedding' as kind, embedding as name, run_id from embeddings
union all select 'clustering', clustering, run_id from clusterings
union all select 'probe', probe, run_id from probes
union all select 'scoring', scoring, run_id from scorings
union all select 'selection', selection, run_id from selections
union all select 'export', export, run_id from exports;

-- Every set with what it was made from. out_of_date: what it was made from has been replaced or has grown since.
create or replace view lineage as
select kind, named_sets.name, parent.name as made_from, runs.arguments, runs.fingerprint, runs.version, runs.git_commit,
       runs.started_at, runs.finished_at, runs.status, run_id,
       kind <> 'embedding' and runs.made_from is not null
           and runs.made_from not in (select run_id from named_sets) as out_of_date
from named_sets join runs using (run_id) left join runs as parent on parent.run_id = runs.made_from;

-- Which set a saved query is about: the variable of that name, else the one that commands take by default.
create or replace macro chosen_scoring() as coalesce(getvariable('scoring')::text,
    (select scoring from scorings order by scoring <> 'ssl_prototypes', run_id desc limit 1));
create or replace macro chosen_clustering() as coalesce(getvariable('clustering')::text,
    (select clustering from clusterings order by run_id desc limit 1));
create or replace macro chosen_selection() as coalesce(getvariable('selection')::text,
    (select selection from selections order by run_id desc limit 1));

-- The vectors of the embeddings that match a pattern, such as '*', and of one. They work with the catalog's folder as the
-- working folder, and elsewhere after
-- set variable catalog = (select parse_dirpath(path) from duckdb_databases() where database_name = current_database());
create or replace macro vectors(pattern) as table
select parse_path(filename)[-2] as embedding, sample_id, vector::float[] as vector
from read_parquet(coalesce(getvariable('catalog') || '/', '') || 'embeddings/' || pattern || '/[0-9]*.parquet',
                  filename = true, hive_partitioning = false)
where (parse_path(filename)[-2], sample_id >> 24) in (select (embedding, shard_id) from embedded_shards);

create or replace macro embedding(name) as table select sample_id, vector from vectors(name);
