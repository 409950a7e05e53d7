-- Fill `members` with the samples of highest priority, each group sure of its floor.
-- `priorities` (sample_id, group_id, priority, tiebreak) and `floors` (group_id, floor) come from the stage.
insert into members
with ranked as (
    select sample_id, floor, priority, tiebreak,
           row_number() over (partition by group_id order by priority desc nulls last, tiebreak) as place
    from priorities join floors using (group_id)
),
-- What no floor secures competes for the rest of the budget, wherever it is.
contest as (
    select sample_id, row_number() over (order by priority desc nulls last, tiebreak) as place
    from ranked where place > floor
)
select $selection as selection, sample_id
from (
    select sample_id from ranked where place <= floor
    union all
    select sample_id from contest where place <= $rest
)
order by sample_id;
