-- Views and macros for people who query. None depends on where the catalog's folder is.
-- One more, sample_scores (a column for each clustering, scoring and deduplication, and those of
-- sample_columns), is made by the commands that add columns to it.

-- How each selection treats each class; num_kept is 0 for a class that is gone. Samples without a label
-- are a class too.
create or replace view class_balance as
with sizes as (
    select label, count(*) as num_samples from samples group by label
),
kept as (
    select selection, label, count(*) as num_kept
    from members join samples using (sample_id)
    group by selection, label
)
select
    selections.selection,
    sizes.label,
    sizes.num_samples,
    coalesce(num_kept, 0) as num_kept,
    coalesce(num_kept, 0) / sizes.num_samples as kept_share
from selections cross join sizes
left join kept on kept.selection = selections.selection and kept.label is not distinct from sizes.label;

-- The clusters with their sizes and distances.
create or replace view cluster_sizes as
select
    clustering,
    cluster_id,
    count(*) as num_samples,
    avg(distance::double) as mean_distance,
    max(distance::double) as max_distance
from assignments
group by clustering, cluster_id;

-- Every named set, with the run that made it.
create or replace view named_sets as
select 'embedding' as kind, embedding as name, run_id from embeddings
union all select 'columns', source, max(run_id) from column_sources group by source
union all select 'clustering', clustering, run_id from clusterings
union all select 'probe', probe, run_id from probes
union all select 'scoring', scoring, run_id from scorings
union all select 'deduplication', deduplication, run_id from deduplications
union all select 'selection', selection, run_id from selections
union all select 'export', export, run_id from exports
union all select 'validation', validation, run_id from validations
union all select 'fit', fit, run_id from fits
union all select 'audit', audit, run_id from audits;

-- Every set with the sets that it was made from. out_of_date: one of them, or of those that they were
-- made from, has been replaced or has grown since.
create or replace view lineage as
with recursive parents as (
    select kind, run_id, unnest(parent_run_ids) as parent_run_id
    from named_sets join runs using (run_id)
),
stale (run_id) as (
    -- the parent of an embedding, and of its columns, is the run that it grew from
    select run_id from parents
    where kind not in ('embedding', 'columns') and parent_run_id not in (select run_id from named_sets)
    union
    select parents.run_id from parents join stale on parents.parent_run_id = stale.run_id
),
parent_names as (
    select parents.run_id, string_agg(distinct runs.name, ', ' order by runs.name) as made_from
    from parents join runs on runs.run_id = parents.parent_run_id
    group by parents.run_id
)
select
    kind,
    named_sets.name,
    made_from,
    runs.arguments,
    runs.fingerprint,
    runs.version,
    runs.git_commit,
    runs.started_at,
    runs.finished_at,
    runs.status,
    run_id,
    run_id in (select run_id from stale) as out_of_date
from named_sets
join runs using (run_id)
left join parent_names using (run_id);

-- What a difference in points says against a margin: better, no loss beyond the margin (the whole
-- interval above −margin), worse (the whole interval below −margin), or undecided. With fewer than 3
-- seeds or 100 test samples nothing is decided.
create or replace macro verdict(difference, half_width, margin, seeds, num_test) as case
    when half_width is null or seeds < 3 or num_test < 100 then 'undecided'
    when difference - half_width > 0 then 'better'
    when difference - half_width > -margin then 'no loss beyond the margin'
    when difference + half_width < -margin then 'worse'
    else 'undecided'
end;

-- The verdict on each selection, against everything and against random samples, on each test set.
-- The margin is the validation's, or the variable: set variable tolerance = 1.0
create or replace view verdicts as
select
    validation,
    selection,
    comparisons.test,
    baseline,
    comparisons.seeds,
    comparisons.num_test,
    accuracy,
    baseline_accuracy,
    difference,
    half_width,
    coalesce(getvariable('tolerance')::double, tolerance) as margin,
    verdict(difference, half_width, margin, comparisons.seeds, comparisons.num_test) as verdict,
    -- a loss that is significant, and smaller than the margin
    verdict = 'no loss beyond the margin' and difference + half_width < 0 as small_loss
from comparisons join validations using (validation);

-- Each selection against random samples and against everything, seed by seed, with the half widths of
-- the 95% intervals; these are null where an earlier version kept no answers, and below two seeds.
create or replace view pruned_vs_random as
with pairs as (
    select
        pruned.validation,
        pruned.selection,
        pruned.test,
        any_value(pruned.keep) as keep,
        any_value(pruned.num_samples) as num_samples,
        count(*) as seeds,
        100 * avg(pruned.accuracy) as pruned,
        100 * avg(random.accuracy) as random,
        100 * avg("full".accuracy) as "full"
    from training_runs as pruned
    join training_runs as random
        on random.arm = 'random' and random.validation = pruned.validation
        and random.selection = pruned.selection and random.seed = pruned.seed
        and random.test = pruned.test
    join training_runs as "full"
        on "full".arm = 'full' and "full".validation = pruned.validation
        and "full".seed = pruned.seed and "full".test = pruned.test
    where pruned.arm = 'pruned'
    group by pruned.validation, pruned.selection, pruned.test
)
select
    pairs.*,
    pruned - random as delta_vs_random,
    pruned - "full" as delta_vs_full,
    vs_random.half_width as delta_vs_random_interval,
    vs_full.half_width as delta_vs_full_interval,
    vs_random.verdict as verdict_vs_random,
    vs_full.verdict as verdict_vs_full
from pairs
left join verdicts as vs_random
    on vs_random.validation = pairs.validation and vs_random.selection = pairs.selection
    and vs_random.test = pairs.test and vs_random.baseline = 'random'
left join verdicts as vs_full
    on vs_full.validation = pairs.validation and vs_full.selection = pairs.selection
    and vs_full.test = pairs.test and vs_full.baseline = 'full';

-- Which set a saved query is about: the variable of that name, else the one that commands take by default.
create or replace macro default_scoring() as coalesce(
    getvariable('scoring')::text,
    (select scoring from scorings order by scoring <> 'ssl_prototypes', run_id desc limit 1)
);
create or replace macro default_clustering() as coalesce(
    getvariable('clustering')::text,
    (select clustering from clusterings order by run_id desc limit 1)
);
create or replace macro default_deduplication() as coalesce(
    getvariable('deduplication')::text,
    (select deduplication from deduplications order by run_id desc limit 1)
);
create or replace macro default_selection() as coalesce(
    getvariable('selection')::text,
    (select selection from selections order by run_id desc limit 1)
);

-- The vectors of the embeddings that match a pattern, such as '*', and of one. They work with the
-- catalog's folder as the working folder, and elsewhere after
-- set variable catalog = (select parse_dirpath(path) from duckdb_databases() where database_name = current_database());
create or replace macro vectors(pattern) as table
select
    parse_path(filename)[-2] as embedding,
    sample_id,
    vector::float[] as vector
from read_parquet(
    -- The folder's own name is no pattern, whatever signs are in it.
    coalesce(regexp_replace(getvariable('catalog'), '([*?\[])', '[\1]', 'g') || '/', '')
        || 'embeddings/' || pattern || '/[0-9]*.parquet',
    filename = true,
    hive_partitioning = false
)
where (parse_path(filename)[-2], sample_id >> 24) in (select (embedding, shard_id) from embedded_shards);

create or replace macro embedding(name) as table select sample_id, vector from vectors(name);
