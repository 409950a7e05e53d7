-- Selections may have a weight for each of their samples.
alter table if exists members add column weight float;
alter table if exists selections add column weights_by text;
