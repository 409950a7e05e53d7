-- Captions have vectors, in files with checksums; runs keep what they were right on, on several test
-- sets; a validation has one setting, and grows; laws are of one kind of selection.
alter table embedded_shards add column captions_checksum text;

alter table if exists validations add column task text default 'labels';
alter table if exists validations add column setting json;
alter table if exists validations add column tolerance double default 0.5;
alter table if exists training_runs add column test text default 'test';
alter table if exists training_runs add column num_test bigint;
alter table if exists training_runs add column correct blob;
alter table if exists training_runs add column selection_fingerprint text;
alter table if exists training_runs add column distance_99 double;
alter table if exists class_accuracies add column test text default 'test';

alter table if exists fits add column schedule text;
alter table if exists fits add column epochs integer;
alter table if exists fits add column strategy text;
alter table if exists fits add column keep double;
alter table if exists fits add column metric text;
alter table if exists fits add column exponent_vs_random double;
alter table if exists fits add column exponent_vs_random_interval double;
