-- Selections that differ in an option of their strategy only are of two kinds. Of those that there are the
-- options are in runs.arguments, defaults among them: they count as they did, as one kind.
alter table if exists selections add column strategy_options text;
alter table if exists fits add column strategy_options text;
-- Selections may have samples that come several times in an epoch.
alter table if exists members add column repeats integer;
alter table if exists selections add column repeats double;
