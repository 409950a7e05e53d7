-- Validated selections, those without a loss beyond $tolerance points first, and of these the smallest.
select pruned_vs_random.keep, validation, selection, over_full, over_full_interval,
       over_full - over_full_interval >= -$tolerance as lossless
from pruned_vs_random join selections using (selection)
where over_full_interval is not null
order by lossless desc, case when lossless then pruned_vs_random.keep end,
         over_full - over_full_interval desc, selection;
