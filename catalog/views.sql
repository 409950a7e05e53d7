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
union all select 'export', export, run_id from exports
union all select 'validation', validation, run_id from validations
union all select 'fit', fit, run_id from fits;

-- Every set with what it was made from. out_of_date: what it was made from has been replaced or has grown since.
create or replace view lineage as
select kind, named_sets.name, parent.name as made_from, runs.arguments, runs.fingerprint, runs.version, runs.git_commit,
       runs.started_at, runs.finished_at, runs.status, run_id,
       kind <> 'embedding' and runs.made_from is not null
           and runs.made_from not in (select run_id from named_sets) as out_of_date
from named_sets join runs using (run_id) left join runs as parent on parent.run_id = runs.made_from;

-- Each selection against random and against full, seed by seed: mean difference in points of accuracy, and the half width of its
-- 95% interval (Student's t; beyond 30 seeds its expansion). An interval needs two seeds.
create or replace view pruned_vs_random as
with t_quantiles(freedom, t) as (values
    (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262), (10, 2.228),
    (11, 2.201), (12, 2.179), (13, 2.160), (14, 2.145), (15, 2.131), (16, 2.120), (17, 2.110), (18, 2.101), (19, 2.093), (20, 2.086)
),
pairs as (
    select pruned.validation, pruned.selection, pruned.keep, pruned.num_samples,
           100 * pruned.accuracy as pruned, 100 * random.accuracy as random, 100 * "full".accuracy as "full",
           100 * (pruned.accuracy - random.accuracy) as over_random, 100 * (pruned.accuracy - "full".accuracy) as over_full
    from trainings as pruned
    join trainings as random on random.arm = 'random' and random.validation = pruned.validation
        and random.selection = pruned.selection and random.seed = pruned.seed
    join trainings as "full" on "full".arm = 'full' and "full".validation = pruned.validation and "full".seed = pruned.seed
    where pruned.arm = 'pruned'
),
means as (
    select validation, selection, any_value(keep) as keep, any_value(num_samples) as num_samples, count(*) as seeds,
           avg(pruned) as pruned, avg(random) as random, avg("full") as "full",
           avg(over_random) as over_random, stddev_samp(over_random) / sqrt(count(*)) as over_random_error,
           avg(over_full) as over_full, stddev_samp(over_full) / sqrt(count(*)) as over_full_error
    from pairs group by validation, selection
)
select * exclude (t, freedom), coalesce(t, 1.96 + 2.6 / (seeds - 1)) * over_random_error as over_random_interval,
       coalesce(t, 1.96 + 2.6 / (seeds - 1)) * over_full_error as over_full_interval
from means left join t_quantiles on freedom = seeds - 1;

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
