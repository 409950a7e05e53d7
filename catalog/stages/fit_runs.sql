-- The training runs of a model's validations, of all corpora, each with its selection. A law is of one
-- test set, the first.
select
    validation,
    arm,
    training_runs.selection,
    strategy,
    training_runs.keep,
    selections.scoring,
    metric,
    strategy_options,
    validations.num_samples as corpus_size,
    validations.epochs as corpus_epochs,
    training_runs.num_samples,
    training_runs.epochs,
    training_runs.seed,
    1 - accuracy as error
from training_runs
join validations using (validation)
left join selections on selections.selection = training_runs.selection
left join scorings on scorings.scoring = selections.scoring
where model = $model
    and schedule = $schedule
    and task = 'labels'
    and arm <> 'weighted'
    and selections.repeats is null
    and coalesce(len(transfer), 0) = 0
    -- of several test sets the first
    and training_runs.test = coalesce(validations.test[1], training_runs.test)
    and ($epochs is null or validations.epochs = $epochs)
order by corpus_size, validation, arm, training_runs.selection, training_runs.seed;
