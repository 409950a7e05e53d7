-- How many samples of each class a selection keeps.  --param selection=NAME (default: the newest)
select selection, label, num_samples, num_kept, round(kept_share, 4) as kept_share
from class_balance where selection = default_selection()
order by try_cast(label as bigint), label;
