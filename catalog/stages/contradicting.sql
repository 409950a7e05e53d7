-- Groups of $deduplication whose samples have several labels.
select group_id
from duplicates join samples using (sample_id)
where deduplication = $deduplication
group by group_id
having count(distinct label) > 1
