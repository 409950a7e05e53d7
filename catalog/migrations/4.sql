-- Validations on another task have its shards. Catalogs before version 3 have no validations.
alter table if exists validations add column transfer text[];
alter table if exists validations alter column transfer type text[] using coalesce(transfer, []);
alter table if exists validations alter column transfer set default [];
