-- Vectors and centroids may be stored under a URL.
alter table meta add column files text;
