-- Validated selections, those without a loss beyond $tolerance points first, and of these the smallest.
-- A selection that was made anew after its validation has other members: that is no evidence for it.
select pruned_vs_random.keep, validation, selection, over_full, over_full_interval,
       over_full - over_full_interval >= -$tolerance as lossless
from pruned_vs_random join selections using (selection) join validations using (validation)
where len(transfer) = 0 and over_full_interval is not null and selections.run_id < validations.run_id
order by lossless desc, case when lossless then pruned_vs_random.keep end,
         over_full - over_full_interval desc, selection;
