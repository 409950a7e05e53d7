-- k-means goes on over every row after the sample; where the time of a run went; and fingerprints of files, for `curate verify`.
alter table clusterings add column passes integer default 0;
alter table clusterings add column centroids_fingerprint text;
alter table runs add column profile json;
alter table embedded_shards add column vectors text;
