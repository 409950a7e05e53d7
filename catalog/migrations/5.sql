-- Iterations of k-means over every row, the time of a run by kind of work, and checksums of files.
alter table clusterings add column passes integer default 0;
alter table clusterings add column centroids_fingerprint text;
alter table runs add column profile json;
alter table embedded_shards add column vectors text;
