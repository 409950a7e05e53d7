-- Samples say which member is their image; selections, which shards they were chosen from.
alter table samples add column member text;
alter table if exists selections add column known_shards bigint[];
-- Columns of samples are in new tables, which schema.sql makes.
