-- What does not add up in the tables: (subject, problem, remedy), no row for a sound catalog.
with embedded as (
    select
        embedding,
        shard_id,
        shards.num_samples,
        num_embedded,
        num_failed,
        (select count(*) from samples where samples.shard_id = embedded_shards.shard_id) as num_in_samples,
        (
            select count(*) from failures
            where failures.shard_id = embedded_shards.shard_id
                and failures.embedding = embedded_shards.embedding and sample_id is not null
        ) as num_recorded,
        (
            select count(*) from failures join samples using (sample_id)
            where failures.shard_id = embedded_shards.shard_id
                and failures.embedding = embedded_shards.embedding
        ) as num_failed_in_samples
    from embedded_shards left join shards using (shard_id)
),
bodies (kind, name, num_claimed, num_rows, num_distinct) as (
    select 'clustering', clustering, num_samples, count(sample_id), count(distinct sample_id)
        from clusterings left join assignments using (clustering) group by all
    union all
    select 'scoring', scoring, num_samples, count(sample_id), count(distinct sample_id)
        from scorings left join scores using (scoring) group by all
    union all
    select 'selection', selection, num_samples, count(sample_id), count(distinct sample_id)
        from selections left join members using (selection) group by all
    union all
    select
        'deduplication', deduplication, num_rows, count(sample_id),
        count(distinct (group_id, sample_id, other_url, other_key)) filter (sample_id is not null)
        from deduplications left join duplicates using (deduplication) group by all
    union all
    select 'probe', probe, num_models, count(part), count(part)
        from probes left join probe_models using (probe) group by all
    union all
    select
        'validation', validation, num_training_runs,
        count(distinct (arm, selection, training_runs.seed)),
        count(distinct (arm, selection, training_runs.seed))
        from validations left join training_runs using (validation) group by all
)
select
    format('embedding ''{}'', shard {}', embedding, shard_id) as subject,
    case
        when num_samples is null then 'the shard is not in the catalog'
        when num_samples <> num_embedded + num_failed
            then format('{} samples, but {} embedded and {} failed', num_samples, num_embedded, num_failed)
        when num_recorded <> num_failed then format('{} failed, but {} are recorded', num_failed, num_recorded)
        else format(
            '{} embedded, but {} are in the table of samples', num_embedded, num_in_samples - num_failed_in_samples
        )
    end as problem,
    'embed the corpus into a new catalog (-c NEW)' as remedy
from embedded
where num_samples is null
    or num_samples <> num_embedded + num_failed
    or num_recorded <> num_failed
    or num_embedded <> num_in_samples - num_failed_in_samples
union all
select
    format('sample {}', sample_id),
    format('it is there {} times', count(*)),
    'embed the corpus into a new catalog (-c NEW)'
from samples
group by sample_id
having count(*) > 1
union all
select
    format('sample {}', sample_id),
    format('it is said to be of shard {}', shard_id),
    'embed the corpus into a new catalog (-c NEW)'
from samples
where sample_id >> 24 <> shard_id or shard_id not in (select shard_id from shards)
union all
select
    format('{} ''{}''', kind, name),
    case
        when num_rows <> num_claimed then format('{} rows, but it says {}', num_rows, num_claimed)
        else format('{} samples come twice', num_rows - num_distinct)
    end,
    format('make the {} again under another name (--name)', kind)
from bodies
where num_rows <> num_claimed or num_distinct <> num_rows
union all
select
    format('clustering ''{}''', clustering),
    'cluster ids outside 0 … k − 1, or distances that do not add up to the objective',
    'cluster again under another name (--name)'
from clusterings join assignments using (clustering)
group by clustering, k, clusterings.distance, objective
having min(cluster_id) < 0
    or max(cluster_id) >= k
    or abs(
        sum(
            if(clusterings.distance = 'cosine', assignments.distance::double, assignments.distance::double ** 2)
        ) - objective
    ) > 1e-6 * greatest(objective, 1)
union all
select
    format('scoring ''{}''', scoring),
    format('{} scores are NULL, but it says {}', count(*) filter (score is null), num_null),
    'score again under another name (--name)'
from scorings join scores using (scoring)
group by scoring, num_null
having count(*) filter (score is null) <> num_null
union all
select
    format('selection ''{}''', selection),
    format('{} samples of {} are not the share {} that it says', num_presentations, num_candidates, keep),
    'select again under another name (--name)'
from (
    select
        selection, num_candidates, keep,
        if(repeats is null, num_samples, (
            select sum(members.repeats) from members where members.selection = selections.selection
        )) as num_presentations
    from selections
)
where num_presentations <> round_even(keep * num_candidates, 0)
union all
select
    format('deduplication ''{}''', deduplication),
    format('in group {} {} samples stay instead of one', group_id, count(*) filter (stays)),
    'make it again under another name (curate dedup --name)'
from deduplications join duplicates using (deduplication)
where against is null
group by deduplication, group_id
having count(*) filter (stays) <> 1
union all
select
    format('{} ''{}''', kind, name),
    'the run that made it is not in the catalog',
    'make it again'
from named_sets
where run_id not in (select run_id from runs);
