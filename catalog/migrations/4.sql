-- Validations on another task: its shards.
alter table validations add column transfer text[] default [];
