-- The accuracy of each class in some validations, the mean over seeds, in percent: of each selection, of
-- as many random samples, and of everything.
select
    pruned.selection,
    pruned.label,
    100 * avg(pruned.accuracy) as pruned,
    100 * avg(random.accuracy) as random,
    100 * avg("full".accuracy) as "full"
from class_accuracies as pruned
join class_accuracies as random
    on random.arm = 'random' and random.validation = pruned.validation
    and random.selection = pruned.selection and random.label = pruned.label and random.seed = pruned.seed
    and random.test = pruned.test
join class_accuracies as "full"
    on "full".arm = 'full' and "full".validation = pruned.validation
    and "full".label = pruned.label and "full".seed = pruned.seed and "full".test = pruned.test
join validations on validations.validation = pruned.validation
where pruned.arm = 'pruned' and pruned.validation in (select unnest($validations))
    -- of several test sets the first, as in fit_runs.sql
    and pruned.test = coalesce(validations.test[1], pruned.test)
group by pruned.selection, pruned.label
order by pruned.label;
