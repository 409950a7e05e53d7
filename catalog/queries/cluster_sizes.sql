-- The clusters by size, with the mean and the largest distance to the centroid.  --param clustering=NAME
select clustering, cluster_id, num_samples, round(mean_distance, 4) as mean_distance, round(max_distance, 4) as max_distance
from cluster_sizes where clustering = default_clustering()
order by num_samples desc, cluster_id;
