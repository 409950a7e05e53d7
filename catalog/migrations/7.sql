-- Plain names, runs with several parents, and the checksum of the code that made a set.
alter table meta rename column files to files_url;

alter table runs add column parent_run_ids bigint[];
update runs set parent_run_ids = case when made_from is null then [] else [made_from] end;
alter table runs drop column made_from;
alter table runs add column code_checksum text;
alter table runs rename column profile to timing;

alter table shards rename column version to etag;
alter table shards rename column fingerprint to checksum;
alter table embedded_shards rename column vectors to vectors_checksum;

alter table clusterings rename column centroids to centroids_file;
alter table clusterings rename column centroids_fingerprint to centroids_checksum;
alter table clusterings rename column sampled_rows to fit_rows;
alter table clusterings rename column passes to full_iterations;

alter table if exists validations rename column num_trainings to num_training_runs;
alter table if exists trainings rename to training_runs;

drop macro if exists chosen_scoring;
drop macro if exists chosen_clustering;
drop macro if exists chosen_selection;
