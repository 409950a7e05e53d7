-- Where vectors and centroids lie, if not in the catalog's own folder: a URL.
alter table meta add column files text;
