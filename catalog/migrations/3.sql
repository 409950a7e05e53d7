-- Selections can skip the hardest samples.
alter table selections add column skip_hardest double default 0;
