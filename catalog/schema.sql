-- Every table of a catalog, in its newest form. A new catalog is made by this file; an old one by the
-- migrations, which change the tables that it has, and then by this file, which adds the others.
-- A stage makes a named set: one row in a table of sets, and rows in its body tables.
-- No foreign keys and no indexes: bodies are written in bulk and read by scans.

create table if not exists meta (
    schema_version integer not null,
    next_shard_id bigint not null, -- ids are never used again
    files_url text -- where vectors and centroids are stored, if not in the catalog's folder
);

-- One row for each call of a stage that did work. Rows stay when the set that a run made is replaced.
create table if not exists runs (
    run_id bigint not null,
    stage text not null,
    name text not null, -- the set that it made
    arguments json not null,
    parent_run_ids bigint[] not null, -- the runs that made the sets it read: a chain back to the embedding
    fingerprint text, -- of arguments, inputs and code
    code_checksum text, -- of the modules that define the metric, strategy, encoder or models
    version text not null,
    git_commit text,
    host text,
    process bigint,
    device text,
    started_at timestamp not null,
    finished_at timestamp,
    status text not null, -- running, done, failed, interrupted, killed
    timing json, -- seconds of its workers by kind of work
    process_start bigint -- of the process, in clock ticks since the machine's: its id may be used again
);

-- The shards of the corpus.
create table if not exists shards (
    shard_id bigint not null,
    url text not null, -- an absolute path, or a URL
    num_bytes bigint not null,
    etag text not null, -- time stamp or ETag: tells cheaply whether the file may have changed
    num_samples bigint, -- null until the shard has been read
    checksum text, -- XXH3 of its bytes (SHA-256 from the first versions)
    complete boolean -- false where it is damaged
);

-- The samples of the corpus.
create table if not exists samples (
    sample_id bigint not null, -- shard_id << 24 | position in the shard, so ids sort in tar order
    shard_id bigint not null,
    key text not null,
    label text,
    caption text,
    byte_offset bigint not null, -- of its first header in the tar
    num_bytes bigint not null, -- of its members in the tar, headers included
    width integer, -- of the image, in pixels
    height integer,
    member text, -- the extension of the image, as it is in the tar; null before schema 9
    image_bytes bigint, -- of its image's file; null, as the checksums, where an early version embedded it
    image_checksum ubigint, -- XXH3 (64 bits) of these bytes
    pixels_checksum ubigint -- XXH3 (64 bits) of the decoded RGB pixels
);

-- Further columns of samples: fields of .json members, and imported tables. A column is added for each
-- field, typed; a sample without the field has NULL. They are in the view sample_scores.
create table if not exists sample_columns (
    sample_id bigint not null -- of a sample with at least one of the fields
);

-- The columns of sample_columns, and where each comes from.
create table if not exists column_sources (
    column_name text not null, -- in sample_columns and sample_scores
    source text not null, -- json, or the name of an import
    field text not null, -- the path in the .json member, or the column of the imported table
    type text not null, -- int, double, bool, text or json
    run_id bigint not null
);

-- The shards whose .json members were read for columns.
create table if not exists column_shards (
    shard_id bigint not null,
    fields json not null -- "all", or the paths
);

create table if not exists embeddings (
    embedding text not null,
    encoder text not null,
    checkpoint text,
    weights_sha256 text not null,
    dim integer not null,
    preprocessing json not null,
    label_source text not null,
    run_id bigint not null
);

-- For every shard, shards.num_samples = num_embedded + num_failed.
create table if not exists embedded_shards (
    embedding text not null,
    shard_id bigint not null,
    num_embedded bigint not null,
    num_failed bigint not null,
    vectors_checksum text, -- of the file with its vectors
    captions_checksum text -- of the file with its captions' vectors; empty without captions, null where not embedded
);

-- What could not be used, and why.
create table if not exists failures (
    embedding text not null,
    shard_id bigint not null,
    sample_id bigint, -- null where a whole shard failed, or its end
    key text,
    member text,
    stage text not null,
    error text not null
);

create table if not exists clusterings (
    clustering text not null,
    embedding text not null,
    distance text not null, -- cosine or euclidean
    k integer not null,
    iterations integer not null, -- on the sample
    seed bigint not null,
    objective double not null, -- summed in float64 over all rows: 1 − x·c for cosine, ‖x − c‖² for euclidean
    centroids_file text not null, -- in clusterings/
    fit_rows bigint not null, -- the size of the sample
    num_samples bigint not null,
    fingerprint text not null,
    run_id bigint not null,
    full_iterations integer default 0, -- over every row, after those on the sample
    centroids_checksum text
);

create table if not exists assignments (
    clustering text not null,
    sample_id bigint not null,
    cluster_id integer not null,
    distance float not null -- to the cluster's centroid
);

-- What `curate update` did to clusterings: new samples were assigned to the centroids that there were. One
-- row an update. The measures of drift are of all samples that came after the fit, against those that it saw.
create table if not exists clustering_updates (
    clustering text not null,
    run_id bigint not null,
    fitted_shards bigint[] not null, -- those that the fit saw: first and last ids of runs of neighbours
    num_added bigint not null, -- samples
    num_removed bigint not null,
    num_fitted bigint not null, -- samples of the fit that are still there
    num_since_fit bigint not null, -- samples that came after it
    excess double, -- of their mean squared distance over that of fitted samples in the same clusters, as a share
    excess_interval double, -- half the width of its 95% interval
    far_share double, -- of them, that are farther from their centroid than every fitted sample
    expected_far_share double, -- of them, without drift
    num_compared_clusters bigint not null,
    num_drifted_clusters bigint not null, -- whose new samples are farther, at 5% over all clusters
    has_drifted boolean not null -- new centroids are advised
);

-- How far selections are from ones made from scratch, with new centroids: `curate update --compare`.
create table if not exists scratch_comparisons (
    selection text not null,
    fingerprint text not null, -- of the selection that was compared
    num_samples bigint not null,
    num_different bigint not null, -- members that the one from scratch does not have
    run_id bigint not null
);

-- Small models trained to measure difficulty. Their outputs for every sample are wide: they are files
-- in probes/FOLDER/.
create table if not exists probes (
    probe text not null,
    embedding text not null,
    models text[] not null,
    num_models integer not null,
    epochs integer not null,
    fraction double not null, -- of the labelled samples, that each model is trained on
    seed bigint not null,
    test text[] not null, -- the test shards
    num_classes integer not null,
    num_samples bigint not null,
    num_test bigint not null,
    folder text not null,
    fingerprint text not null,
    run_id bigint not null
);

-- Accuracies at the end of training: on the samples a model was trained on, on those it was not, and on
-- the test shards.
create table if not exists probe_models (
    probe text not null,
    part text not null,
    model text not null,
    seed bigint not null,
    accuracy double,
    left_out_accuracy double,
    test_accuracy double,
    seconds double not null
);

create table if not exists scorings (
    scoring text not null,
    metric text not null,
    source text, -- the clustering, probe or embedding that it was made from
    arguments json not null,
    num_samples bigint not null,
    num_null bigint not null, -- samples that could not be scored
    reliability double, -- rank correlation of the scores by two halves of a probe's models
    fingerprint text not null,
    run_id bigint not null
);

-- What a metric was given of the whole corpus, such as class means: new samples are scored by the same.
create table if not exists scoring_inputs (
    scoring text not null,
    input text not null, -- the metric's parameter, or classes: the names of its class numbers
    array_file blob not null -- as a .npy file has it
);

create table if not exists scores (
    scoring text not null,
    sample_id bigint not null,
    score double, -- a high score means worth keeping
    standard_error double
);

create table if not exists selections (
    selection text not null,
    scoring text,
    strategy text not null,
    keep double not null, -- fraction of the candidates
    scope text not null,
    balance double not null,
    balance_by text, -- label, cluster or none
    balance_base text not null,
    where_sql text, -- the condition on the candidates
    seed bigint not null,
    skip_hardest double not null default 0,
    num_candidates bigint not null,
    num_samples bigint not null,
    fingerprint text not null,
    run_id bigint not null,
    known_shards bigint[], -- the shards there were: first and last ids of runs of neighbours; null before schema 9
    weights_by text, -- the strata of members.weight: label, cluster, or those of the strategy; null without weights
    strategy_options text, -- the strategy's own options and the sets given to it, those that are not the defaults
    repeats double -- the expected repeats of the best samples; null without
);

create table if not exists members (
    selection text not null,
    sample_id bigint not null,
    weight float, -- with --weights: the inverse of the share that its stratum keeps, 1 on average
    repeats integer -- with --repeats: how often it comes in an epoch
);

-- The members that the last drawing of a selection changed, where it was drawn before.
create table if not exists membership_changes (
    selection text not null,
    sample_id bigint not null,
    has_come boolean not null, -- it left where false
    reason text not null -- new (samples), shard (left), candidate (no more), threshold, quota, strategy, scores
);

-- Duplicates by bytes, by pixels and by vectors. Each leaves a selection of the same name: the samples that
-- are no duplicate of another that stays.
create table if not exists deduplications (
    deduplication text not null,
    embedding text, -- null where only exact duplicates were looked for
    method text not null, -- exact, greedy, components or upper
    eps double, -- near: a cosine above 1 − eps
    keep_best text not null, -- of a group the one with the highest value of this stays
    against text, -- the other catalog, where duplicates of its samples were looked for
    num_candidates bigint not null,
    num_groups bigint not null,
    num_rows bigint not null, -- in `duplicates`
    num_exact bigint not null, -- samples that go, by bytes or by pixels
    num_near bigint not null, -- samples that go, by their vectors
    num_contradicting bigint not null, -- groups with several labels
    fingerprint text not null,
    run_id bigint not null
);

-- The groups, each with the sample that stays. Against another catalog: a group for each of its samples that has
-- duplicates here, and none stays.
create table if not exists duplicates (
    deduplication text not null,
    group_id bigint not null,
    sample_id bigint not null,
    stays boolean not null,
    kind text, -- bytes, pixels or near; null for the one that stays
    similarity double not null, -- cosine with the one that stays; 1 for bytes and pixels
    other_url text, -- the sample of the other catalog
    other_key text
);

-- What each selection leaves of the groups of samples (classes, clusters, values of a column), and how well
-- it covers what it drops; "random" is the mean of as many samples drawn under the same balance.
create table if not exists audits (
    audit text not null,
    selection text not null,
    grouped_by text not null, -- label, cluster, or a column
    clustering text, -- that has the clusters
    embedding text not null, -- in which distances are measured
    floor double not null, -- of what random keeps of a group; what keeps less, beyond chance, is below it
    seeds integer not null, -- random selections
    seed bigint not null,
    num_candidates bigint not null,
    num_samples bigint not null,
    num_groups bigint not null,
    num_vanished bigint not null, -- groups of which nothing is kept
    random_num_vanished double not null,
    num_below_floor bigint not null,
    random_num_below_floor double not null,
    kl double not null, -- in nats, of the groups of the selection from those of all candidates
    random_kl double not null,
    effective_groups double not null, -- exp of the entropy of the groups
    random_effective_groups double not null,
    all_effective_groups double not null, -- of all candidates
    distance_mean double, -- cosine distance of dropped samples to the nearest kept one; null where all are kept
    random_distance_mean double,
    distance_99 double, -- 99th percentile
    random_distance_99 double,
    near_duplicate_share double, -- of the kept samples, that have another kept one at the next column's cosine or more
    random_near_duplicate_share double,
    near_duplicate_cosine double,
    fingerprint text not null,
    run_id bigint not null
);

create table if not exists audit_groups (
    audit text not null,
    group_name text not null,
    num_candidates bigint not null,
    num_kept bigint not null,
    random_num_kept double not null,
    is_below_floor boolean not null
);

-- How even the contributions of samples are, by scorings of the metric contribution: of all candidates, of the
-- kept ones, of random selections (mean), and of the kept ones by models that were trained on these alone.
create table if not exists audit_contributions (
    audit text not null,
    population text not null, -- all, kept, random, or kept alone
    scoring text not null,
    num_samples bigint not null,
    mean double not null, -- contribution
    similarity double not null, -- mean / standard deviation
    effective_share double not null, -- (sum)² / (n · sum of squares): 1 where all contribute alike
    negative_share double not null -- of the samples
);

create table if not exists exports (
    export text not null,
    selection text not null,
    path text not null,
    layout text not null,
    num_shards bigint not null,
    num_samples bigint not null,
    num_bytes bigint not null,
    fingerprint text not null,
    run_id bigint not null
);

-- Small training runs that compare a selection (arm pruned) with the whole corpus (full) and with as
-- many samples drawn at random under the same balance (random). Seeds pair them. A validation has one
-- setting; selections, fractions and seeds are added to it.
create table if not exists validations (
    validation text not null,
    embedding text not null,
    model text not null,
    epochs integer not null,
    schedule text not null, -- epochs or iterations
    seeds integer not null,
    seed bigint not null,
    test text[] not null, -- the test shards; empty where a fifth of the corpus is held out
    num_test bigint not null,
    num_samples bigint not null,
    num_training_runs integer not null,
    fingerprint text not null,
    run_id bigint not null,
    transfer text[] default [], -- the shards of another task to fine-tune on
    task text default 'labels', -- what is tested: labels, captions, clusters, coverage or self-supervised
    setting json, -- all options that a training run depends on
    tolerance double default 0.5 -- the margin of the verdicts, in points
);

create table if not exists training_runs (
    validation text not null,
    arm text not null, -- full, pruned, random, or weighted: pruned with the weights of the selection
    selection text, -- for random, the one it is compared with; null for full
    keep double not null,
    seed bigint not null,
    num_samples bigint not null,
    epochs integer not null,
    accuracy double not null,
    loss double not null,
    seconds double not null,
    test text default 'test', -- the test set: its shards, or how samples were held out
    num_test bigint,
    correct blob, -- which test samples it was right on, eight per byte; null before schema 8
    selection_fingerprint text, -- of the selection that it trained on
    distance_99 double -- of coverage, whose loss is the mean distance: the 99th percentile
);

-- Each selection against full and random on each test set: the mean difference in points of accuracy,
-- half of its 95% interval over seeds and test samples, and the variances that these are made of.
create table if not exists comparisons (
    validation text not null,
    selection text not null,
    baseline text not null, -- full or random; unweighted, unrepeated: with the weights or repeats of the selection against without
    test text not null,
    seeds integer not null,
    num_test bigint not null,
    accuracy double not null, -- of the selection, in percent
    baseline_accuracy double not null,
    difference double not null,
    half_width double not null,
    variance double not null, -- of the difference
    freedom double not null, -- degrees of freedom of the variance
    seed_variance double not null, -- of one seed
    sample_variance double not null, -- of one test sample
    residual_variance double not null -- of one answer
);

create table if not exists class_accuracies (
    validation text not null,
    arm text not null,
    selection text,
    seed bigint not null,
    label text not null,
    num_test bigint not null,
    accuracy double not null,
    test text default 'test'
);

-- How the error falls with the number of samples: error = asymptote + amplitude · n^−exponent (power; the
-- asymptote of pure-power is 0), or asymptote + amplitude · exp(−exponent · n) (exponential).
create table if not exists fits (
    fit text not null,
    model text not null,
    arms text not null, -- random; pareto: the least error over initial sizes and keeps; or pruned: one kind
    form text not null,
    exponent double not null,
    exponent_low double not null, -- of the 95% interval over seeds
    exponent_high double not null,
    amplitude double not null,
    asymptote double not null,
    num_points integer not null,
    seeds integer not null,
    fingerprint text not null,
    run_id bigint not null,
    schedule text, -- of the validations, as epochs is where only those of one length were taken
    epochs integer,
    strategy text, -- this, the next two and strategy_options: the kind of selection
    keep double,
    metric text,
    exponent_vs_random double, -- less that of random samples, paired by seed
    exponent_vs_random_interval double, -- half the width of its 95% interval
    strategy_options text
);

create table if not exists fit_points (
    fit text not null,
    num_samples double not null,
    error double not null,
    fitted double not null
);
