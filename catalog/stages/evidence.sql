-- Validated selections: those without a loss beyond $tolerance points first, and of these the smallest.
-- Evidence is of the same corpus (all of it, or $within), and of these members: not of a selection that was
-- made anew since. What one validation is sure to lose, no other makes up for.
with evidence as (
    select
        pruned_vs_random.num_samples,
        validation,
        selection,
        delta_vs_full,
        delta_vs_full_interval,
        delta_vs_full - delta_vs_full_interval >= -$tolerance as no_loss_shown,
        delta_vs_full + delta_vs_full_interval < -$tolerance as loss_shown
    from pruned_vs_random
    join selections using (selection)
    join validations using (validation)
    left join runs on runs.run_id = validations.run_id
    where len(transfer) = 0
        and delta_vs_full_interval is not null
        and selections.run_id < validations.run_id
        and arguments->>'within' is not distinct from $within::text
)
select
    validation,
    selection,
    delta_vs_full,
    delta_vs_full_interval,
    no_loss_shown and not bool_or(loss_shown) over (partition by selection) as lossless
from evidence
order by
    lossless desc,
    case when lossless then num_samples end,
    delta_vs_full - delta_vs_full_interval desc,
    selection;
