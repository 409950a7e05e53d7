-- Samples say which member is their image; selections, which shards they were chosen from.
alter table samples add column member text;
alter table if exists selections add column known_shards bigint[];

-- Checksums of images, by which exact duplicates are found.
alter table samples add column image_bytes bigint;
alter table samples add column image_checksum ubigint;
alter table samples add column pixels_checksum ubigint;

-- Columns of samples are in new tables, which schema.sql makes.

-- A process is known by its id and its start, because ids are used again.
alter table runs add column process_start bigint;
