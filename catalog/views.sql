-- Views and macros for people who query. None depends on where the folder lies.
-- One more, sample_scores (a column for each clustering and scoring), is made anew by cluster and score.

-- How each selection treats each class; num_kept is 0 for a class that is gone.
create or replace view class_balance as
with sizes as (select label, count(*) as num_samples from samples group by label),
kept as (
    select selection, label, count(*) as num_kept
    from members join samples using (sample_id)
    group by selection, label
)
select selection, label, sizes.num_samples, coalesce(num_kept, 0) as num_kept,
       coalesce(num_kept, 0) / sizes.num_samples as kept_share
from selections cross join sizes left join kept using (selection, label);

create or replace view cluster_sizes as
select clustering, cluster_id, count(*) as num_samples,
       avg(distance) as mean_distance, max(distance) as max_distance
from assignments group by clustering, cluster_id;

-- Every set with what it was made from and by which run.
create or replace view lineage as
with sets as (
    select 'embedding' as kind, embedding as name, null as made_from, weights_sha256 as fingerprint, run_id from embeddings
    union all select 'clustering', clustering, embedding, fingerprint, run_id from clusterings
    union all select 'scoring', scoring, source, fingerprint, run_id from scorings
    union all select 'selection', selection, scoring, fingerprint, run_id from selections
    union all select 'export', export, selection, fingerprint, run_id from exports
)
select kind, name, made_from, arguments, version, git_commit, started_at, finished_at, status, fingerprint
from sets join runs using (run_id);

-- The vectors of an embedding. Works with the catalog's folder as the working folder, and elsewhere after
-- set variable catalog = (select parse_dirpath(path) from duckdb_databases() where database_name = current_database());
create or replace macro embedding(name) as table
select sample_id, vector::float[] as vector
from read_parquet(coalesce(getvariable('catalog') || '/', '') || 'embeddings/' || name || '/*.parquet');
