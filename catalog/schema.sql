-- Every table of a catalog. A stage makes a named set: one row in a head table, and its body.
-- No foreign keys and no indexes: bodies are written in bulk and read by scans.

create table meta (schema_version integer not null, next_shard_id bigint not null, files text);
insert into meta values (6, 0, null);

-- One row for each call of a stage that did work; rows stay when the set that a run made is replaced.
-- made_from is the run that made the set this one read, so a chain of runs leads back to the embedding.
-- profile: seconds that its workers spent on each kind of work and on waiting.
create table runs (
    run_id bigint not null, stage text not null, name text not null, arguments json not null,
    made_from bigint, fingerprint text,
    version text not null, git_commit text, host text, process bigint, device text,
    started_at timestamp not null, finished_at timestamp, status text not null,
    profile json
);

-- The corpus. sample_id = (shard_id << 24) | position in the shard, so ids sort in tar order.
-- num_samples is null until the shard has been read; complete is false where it is damaged.
create table shards (
    shard_id bigint not null, url text not null, num_bytes bigint not null, version text not null,
    num_samples bigint, fingerprint text, complete boolean
);
create table samples (
    sample_id bigint not null, shard_id bigint not null, key text not null, label text, caption text,
    byte_offset bigint not null, num_bytes bigint not null, width integer, height integer
);

create table embeddings (
    embedding text not null, encoder text not null, checkpoint text, weights_sha256 text not null, dim integer not null,
    preprocessing json not null, label_source text not null, run_id bigint not null
);
-- For every shard: shards.num_samples = num_embedded + num_failed. vectors: the fingerprint of its file, for `curate verify`.
create table embedded_shards (
    embedding text not null, shard_id bigint not null, num_embedded bigint not null, num_failed bigint not null,
    vectors text
);
-- sample_id is null where a whole shard failed, or its end.
create table failures (
    embedding text not null, shard_id bigint not null, sample_id bigint, key text, member text,
    stage text not null, error text not null
);

create table clusterings (
    clustering text not null, embedding text not null, distance text not null, k integer not null,
    iterations integer not null, seed bigint not null, objective double not null, centroids text not null,
    sampled_rows bigint not null, num_samples bigint not null, fingerprint text not null, run_id bigint not null,
    passes integer default 0, centroids_fingerprint text
);
create table assignments (
    clustering text not null, sample_id bigint not null, cluster_id integer not null, distance float not null
);

-- Small models trained to measure difficulty. What they say of every sample is wide: it lies in probes/<folder>/.
create table probes (
    probe text not null, embedding text not null, models text[] not null, num_models integer not null, epochs integer not null,
    fraction double not null, seed bigint not null, test text[] not null, num_classes integer not null,
    num_samples bigint not null, num_test bigint not null, folder text not null, fingerprint text not null, run_id bigint not null
);
-- Accuracies at the end of training: on the samples a model was trained on, on those it was not, on the test shards.
create table probe_models (
    probe text not null, part text not null, model text not null, seed bigint not null,
    accuracy double, left_out_accuracy double, test_accuracy double, seconds double not null
);

-- reliability: Spearman's rank correlation between the scores by one half of a probe's models and by the other.
create table scorings (
    scoring text not null, metric text not null, source text, arguments json not null,
    num_samples bigint not null, num_null bigint not null, reliability double, fingerprint text not null, run_id bigint not null
);
create table scores (scoring text not null, sample_id bigint not null, score double, standard_error double);

create table selections (
    selection text not null, scoring text, strategy text not null, keep double not null, scope text not null,
    balance double not null, balance_by text, balance_base text not null, where_sql text, seed bigint not null,
    skip_hardest double not null default 0,
    num_candidates bigint not null, num_samples bigint not null, fingerprint text not null, run_id bigint not null
);
create table members (selection text not null, sample_id bigint not null);

create table exports (
    export text not null, selection text not null, path text not null, layout text not null,
    num_shards bigint not null, num_samples bigint not null, num_bytes bigint not null,
    fingerprint text not null, run_id bigint not null
);

-- Small training runs that compare a selection (arm pruned) with the whole corpus (full) and with as many samples drawn at random
-- under the same balance (random; `selection` names the one it is compared with). Seeds pair them.
create table validations (
    validation text not null, embedding text not null, model text not null, epochs integer not null, schedule text not null,
    seeds integer not null, seed bigint not null, test text[] not null, num_test bigint not null, num_samples bigint not null,
    num_trainings integer not null, fingerprint text not null, run_id bigint not null, transfer text[] default []
);
create table trainings (
    validation text not null, arm text not null, selection text, keep double not null, seed bigint not null,
    num_samples bigint not null, epochs integer not null, accuracy double not null, loss double not null, seconds double not null
);
create table class_accuracies (
    validation text not null, arm text not null, selection text, seed bigint not null, label text not null,
    num_test bigint not null, accuracy double not null
);

-- How the error falls with the number of samples: arms random (and everything), and pareto, the least over initial sizes and keeps.
-- error = asymptote + amplitude · n^-exponent, or · exp(-exponent · n). fit_points holds what was fitted.
create table fits (
    fit text not null, model text not null, arms text not null, form text not null, exponent double not null,
    exponent_low double not null, exponent_high double not null, amplitude double not null, asymptote double not null,
    num_points integer not null, seeds integer not null, fingerprint text not null, run_id bigint not null
);
create table fit_points (fit text not null, num_samples double not null, error double not null, fitted double not null);
