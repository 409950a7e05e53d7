"""`curate validate`: train on selections, on random samples and on everything, and compare."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ClassAccuracyRecord,
    ClusteringRecord,
    EmbeddingRecord,
    SelectionRecord,
    TrainingRunRecord,
    ValidationRecord,
)
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.devices import find_local_devices
from curate.execution.types import Devices, Resources
from curate.formats.shard_patterns import hide_patterns
from curate.formatting import count_of
from curate.models import make_model
from curate.options import Device, EmbeddingName, Epochs, Option, Seed, SetName, Within, verb
from curate.progress import log, progress_bar
from curate.stages.evidence.comparisons import (
    FULL,
    PRUNED,
    RANDOM,
    WEIGHTED,
    pack_answers,
    refresh_comparisons,
)
from curate.stages.evidence.verdicts import read_verdicts
from curate.stages.select.stage import Balance, Repeats, Tolerance, check_strategy, select
from curate.stages.staleness import validation_checksum, warn_if_stale
from curate.stages.validate.setting import (
    CAPTIONS,
    CLUSTERS,
    COVERAGE,
    LABELS,
    MODEL_OF_TASK,
    SELF_SUPERVISED,
    TASKS,
    Setting,
    choose_name,
    compute_fingerprint,
    default_name,
)

if TYPE_CHECKING:
    from curate.stages.training_data import ExtraShards
    from curate.stages.validate.arms import MissingSeeds
    from curate.stages.validate.worker import ArmResult

SCHEDULES = ("epochs", "iterations")
_DEFAULT_STRATEGY, _DEFAULT_SEEDS = "hardest", 5

Schedule = Annotated[
    str,
    Option("Train all arms for the same number of epochs, or of iterations.", choices=SCHEDULES),
]


def check_trainable(model: str) -> None:
    """OptionError for a model that does not exist or is not trained."""
    if make_model(model).build is None:
        raise OptionError(
            f"the model '{model}' is solved in closed form: "
            "validate with one that is trained, such as mlp"
        )


def _check_options(arguments: Mapping[str, Any]) -> None:
    if not arguments["keep"] and (arguments["strategy"] or arguments["scoring"]):
        raise OptionError(
            "--strategy and --scoring say what is selected for --keep: "
            "give that too, such as --keep 0.8"
        )
    if arguments["repeats"] and not arguments["keep"]:
        raise OptionError(
            "--repeats says what is selected for --keep: give that too, or the names of two "
            "selections, with repeats and without"
        )
    task, transfer = arguments["task"], arguments["transfer"]
    if task == CLUSTERS and arguments["test"]:
        raise OptionError(
            "--task clusters tests on held-out samples, which have clusters: leave out --test"
        )
    if task in MODEL_OF_TASK and arguments["model"]:
        raise OptionError(f"--task {task} trains none of the models: leave out --model")
    if task == SELF_SUPERVISED and not transfer:
        raise OptionError(
            "--task self-supervised tests on a labelled task: give its shards with --transfer"
        )
    if task not in (None, LABELS) and arguments["label_bins"]:
        raise OptionError(f"--task {task} has no labels to put into bins: leave out --label-bins")
    if transfer and arguments["label_bins"]:
        raise OptionError("--label-bins is for the labels of the corpus: leave out --transfer")
    if task not in (None, LABELS, SELF_SUPERVISED) and transfer:
        raise OptionError(f"--task {task} tests on the corpus' own kind: leave out --transfer")


@verb(check=_check_options)
def validate(
    catalog: Catalog | str | Path,
    selections: Annotated[
        list[str] | None, Option("Names of selections.", default="those of --keep, or all")
    ] = None,
    *,
    keep: Annotated[
        list[float] | float | None,
        Option(
            "Fraction to keep; repeatable: a grid with --strategy.",
            above=0,
            maximum=1,
            metavar="F",
        ),
    ] = None,
    strategy: Annotated[
        list[str] | str | None,
        Option("Which samples to keep first; repeatable.", default="hardest", check=check_strategy),
    ] = None,
    scoring: Annotated[
        list[str] | str | None,
        Option("Scoring to rank by, for --keep; repeatable.", default="ssl_prototypes"),
    ] = None,
    balance: Balance = None,
    task: Annotated[
        str | None,
        Option(
            "What the arms are tested for.",
            choices=TASKS,
            default="the strongest that the corpus allows",
        ),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            "What to train; see `curate list models`.",
            check=check_trainable,
            default="mlp; conv for --task self-supervised",
        ),
    ] = None,
    seeds: Annotated[int, Option("Training runs per arm.", minimum=2)] = _DEFAULT_SEEDS,
    epochs: Epochs = None,
    schedule: Schedule = "epochs",
    within: Within = None,
    test: Annotated[
        list[str] | str | None,
        Option("Test shards; each time it is given, a test set of its own.", metavar="SHARDS"),
    ] = None,
    transfer: Annotated[
        list[str] | str | None,
        Option(
            "Shards of another task to fine-tune on and test for; repeatable.", metavar="SHARDS"
        ),
    ] = None,
    tolerance: Tolerance = 0.5,
    weights: Annotated[
        bool,
        Option(
            "Also train with the weights of the selections (`curate select --weights`), and "
            "compare with training without."
        ),
    ] = False,
    repeats: Repeats = None,
    label_bins: Annotated[
        int | None,
        Option(
            "Make so many classes, of about as many samples each, of labels that are numbers.",
            minimum=2,
            maximum=1000,
            metavar="N",
        ),
    ] = None,
    embedding: EmbeddingName = None,
    seed: Seed = 0,
    device: Device = "auto",
    name: SetName = None,
) -> str:
    """Compare selections with random ones of the same size and balance, and with the whole corpus.

    The selections are those named, or those of the grid `keep` × `strategy` × `scoring`, which are
    made, or all that the catalog has. `seeds` models train in each arm, paired by seed. `within`
    names a selection that is all of the corpus for this comparison. Tested on the shards `test`, or
    on a fifth of the corpus held out by a hash of the keys. With the shards of another task in
    `transfer`, every model is then fine-tuned on that task and tested for it (Fig. 4B of Sorscher
    et al. 2022). A verdict is against the margin `tolerance`, in points of accuracy. Selections,
    fractions and seeds are added to a validation of the same setting, and what was trained is used
    again. With `weights`, models also train on each selection that has weights with these, and the
    verdict says whether they help. With `repeats`, selections of `keep` are made with and without;
    models train for as many steps on both, and the verdict says whether repeats help. It does so
    for named ones too, where both are among them. Each training run is kept when it ends, so that
    the same command continues after an interruption. Returns the validation's name.
    """
    devices = find_local_devices(device)
    catalog = Catalog(catalog)
    parent = catalog.require(EmbeddingRecord, embedding)
    task = task or _strongest_task(catalog, parent, bool(transfer))
    # Without one, each strategy takes its default, or none.
    scorings: list[str | None] = [*_as_list(scoring)] or [None]
    grid = itertools.product(
        [keep] if isinstance(keep, int | float) else list(keep or []),
        _as_list(strategy) or [_DEFAULT_STRATEGY],
        scorings,
    )
    names = list(selections or [])
    names += [
        select(
            catalog,
            keep=fraction,
            scoring=scoring_name,
            strategy=strategy_name,
            balance=balance,
            within=within,
            weights=weights,
            repeats=most,
        )
        for fraction, strategy_name, scoring_name in grid
        for most in dict.fromkeys([None, repeats])
    ]
    names = list(dict.fromkeys(names or catalog.list_names(SelectionRecord)))
    records = [catalog.require(SelectionRecord, selection) for selection in names]
    if not records:
        catalog.require(SelectionRecord, None)  # raises, and says how to make one
    if weights:
        _check_weights(records, task)
    setting = Setting(
        task=task,
        embedding=parent.embedding,
        model=model or MODEL_OF_TASK.get(task, "conv" if task == SELF_SUPERVISED else "mlp"),
        epochs=epochs,
        schedule=schedule,
        seed=seed,
        within=within,
        test=list(dict.fromkeys(hide_patterns(_as_list(test)))),
        transfer=hide_patterns(_as_list(transfer)),
        clustering=_target_clustering(catalog, parent) if task == CLUSTERS else None,
        label_bins=label_bins,
    )
    test_shards = _embed_extra_shards(catalog, parent, setting)
    fingerprint = compute_fingerprint(catalog, setting)
    requested = name
    name = choose_name(catalog, requested, setting, fingerprint)
    with catalog.write_lock(catalog.path / "validations" / name, f"the validation '{name}'"):
        if choose_name(catalog, requested, setting, fingerprint) != name:
            raise CurateError(
                f"another process has just taken the name '{name}' for another setting: "
                "run the same command again"
            )
        _log_name(catalog, name, requested or default_name(setting), fingerprint)
        validation = _add_arms(
            catalog,
            name,
            setting,
            fingerprint,
            records,
            test_shards=test_shards,
            num_seeds=seeds,
            tolerance=tolerance,
            devices=devices,
            weights=weights,
        )
    warn_if_stale(catalog, validation)
    for verdict in read_verdicts(catalog, name):
        (log.warning if verdict.is_alarming else log.info)("%s", verdict.text)
    return name


def _log_name(catalog: Catalog, name: str, usual_name: str, fingerprint: str) -> None:
    """Say that another name is used, or that an earlier validation of that name is replaced."""
    if name != usual_name:
        log.info("'%s' has another setting: this validation is '%s'", usual_name, name)
    existing = catalog.find(ValidationRecord, name)
    if existing and existing.fingerprint != fingerprint:
        log.warning(
            "'%s' is of an earlier state of the corpus or the code: "
            "its %s training runs are made again",
            name,
            existing.num_training_runs,
        )


def _check_weights(records: list[SelectionRecord], task: str) -> None:
    if task not in (LABELS, CLUSTERS):
        raise OptionError(f"--weights is for models that learn classes, not for --task {task}")
    without = [record.selection for record in records if not record.weights_by]
    if len(without) == len(records):
        raise CurateError(
            f"--weights: '{without[0]}' has no weights; make a selection that has by "
            "`curate select --weights`"
        )
    if without:
        log.info("without weights, so not trained with them: %s", ", ".join(without))


def _as_list(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _strongest_task(catalog: Catalog, parent: EmbeddingRecord, transfer: bool) -> str:
    """The strongest task that the corpus allows.

    Labels; else captions; else the clusters of another embedding; else coverage.
    """
    with catalog.reading() as connection:
        has_labels = connection.execute(
            "select 1 from samples where label is not null limit 1"
        ).fetchall()
    if has_labels or transfer:
        return LABELS
    names = catalog.list_names(ClusteringRecord)
    if catalog.caption_files(parent.embedding):
        task, reason = CAPTIONS, "no labels, but captions"
    elif any(
        catalog.require(ClusteringRecord, name).embedding != parent.embedding for name in names
    ):
        task, reason = CLUSTERS, "no labels or captions, but clusters of another embedding"
    else:
        task, reason = COVERAGE, "no labels, captions or clusters of another embedding"
    log.info("%s: --task %s", reason, task)
    return task


def _target_clustering(catalog: Catalog, parent: EmbeddingRecord) -> str:
    """The clustering that is predicted: of another embedding, or of this one by another seed."""
    from curate.stages.cluster.stage import cluster

    names = reversed(catalog.list_names(ClusteringRecord))
    for record in (catalog.require(ClusteringRecord, name) for name in names):
        if record.embedding != parent.embedding:
            return record.clustering
    log.info("no clustering of another embedding: the clusters of this one by another seed")
    return cluster(catalog, embedding=parent.embedding, seed=1, name=f"{parent.embedding}-task")


def _embed_extra_shards(
    catalog: Catalog, parent: EmbeddingRecord, setting: Setting
) -> "ExtraShards | None":
    """Embed test shards and another task's; returns the test shards that are of the corpus' task.

    With another task's shards, test shards are of that task.
    """
    from curate.stages.training_data import check_no_leakage, embed_test_set

    folder = setting.extra_folder
    test = embed_test_set(catalog, parent, setting.test, folder) if setting.test else None
    if setting.transfer:
        transfer = embed_test_set(catalog, parent, setting.transfer, folder)
        if test:
            check_no_leakage(transfer.catalog, transfer.urls, test)
        return None
    if test:
        check_no_leakage(catalog, None, test)
    return test


def _add_arms(
    catalog: Catalog,
    name: str,
    setting: Setting,
    fingerprint: str,
    records: list[SelectionRecord],
    *,
    test_shards: "ExtraShards | None",
    num_seeds: int,
    tolerance: float,
    devices: Devices,
    weights: bool,
) -> ValidationRecord:
    """Train what the validation lacks of these selections and seeds; returns its record."""
    from curate.stages.training_data import warn_of_near_duplicates

    seeds = [setting.seed + index for index in range(num_seeds)]
    existing = catalog.find(ValidationRecord, name)
    is_same = existing is not None and existing.fingerprint == fingerprint
    finished = _finished_runs(catalog, name, setting.num_results) if is_same else set()
    fingerprints = {record.selection: record.fingerprint for record in records}
    weights_by = {record.selection: record.weights_by for record in records}
    # Runs on other members under a selection's name are replaced.
    finished = {run for run in finished if fingerprints.get(run[1] or "", run[2]) == run[2]}

    def missing_seeds(
        arm: str, selection: str | None, selection_fingerprint: str | None
    ) -> list[int]:
        if arm == WEIGHTED and not (weights and weights_by.get(str(selection))):
            return []
        key = (arm, selection, selection_fingerprint)
        return [seed for seed in seeds if (*key, seed) not in finished]

    is_complete = not missing_seeds(FULL, None, None) and not any(
        missing_seeds(arm, record.selection, record.fingerprint)
        for record in records
        for arm in (PRUNED, RANDOM, WEIGHTED)
    )
    if existing is not None and is_same and is_complete:
        log.info(
            "nothing to do: '%s' has these arms already (%s)",
            name,
            count_of(len(finished), "training run"),
        )
        current = replace(existing, tolerance=tolerance, num_training_runs=len(finished))
        if current != existing:  # another margin, or an earlier call for more was interrupted
            with catalog.writing() as connection:
                connection.execute(
                    "update validations set tolerance = ?, num_training_runs = ? "
                    "where validation = ?",
                    [tolerance, len(finished), name],
                )
        return current
    for record in records:
        warn_if_stale(catalog, record)
    if test_shards:
        warn_of_near_duplicates(catalog, setting.embedding, test_shards)
    names = {record.selection for record in records}
    names |= {selection for _, selection, _, _ in finished if selection is not None}
    with catalog.record_run(
        "validate",
        name,
        {"selections": [record.selection for record in records], "seeds": num_seeds}
        | setting.to_dict(),
        parents=_find_parents(catalog, setting, names),
        fingerprint=fingerprint,
        code_checksum=validation_checksum(setting.task, setting.model),
        device=devices.kind,
    ) as run_id:
        validation = ValidationRecord(
            validation=name,
            embedding=setting.embedding,
            model=setting.model,
            epochs=0,  # known when the corpus has been read, as the counts below are
            schedule=setting.schedule,
            seeds=max(num_seeds, existing.seeds if existing and is_same else 0),
            seed=setting.seed,
            test=setting.test,
            num_test=0,
            num_samples=0,
            num_training_runs=len(finished),
            fingerprint=fingerprint,
            run_id=run_id,
            transfer=setting.transfer,
            task=setting.task,
            setting=setting.to_json(),
            tolerance=tolerance,
        )
        return _train(catalog, validation, setting, records, missing_seeds, devices)


def _find_parents(catalog: Catalog, setting: Setting, selections: set[str]) -> list[int]:
    """The runs that made what a validation is made of."""
    parents = [catalog.require(EmbeddingRecord, setting.embedding).run_id]
    records = [catalog.find(SelectionRecord, name) for name in sorted(selections)]
    parents += [record.run_id for record in records if record is not None]
    if setting.within:
        parents.append(catalog.require(SelectionRecord, setting.within).run_id)
    if setting.clustering:
        parents.append(catalog.require(ClusteringRecord, setting.clustering).run_id)
    return parents


def _finished_runs(
    catalog: Catalog, name: str, num_results: int
) -> set[tuple[str, str | None, str | None, int]]:
    """The runs that were tested on every set: (arm, selection, its fingerprint, seed)."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select arm, selection, selection_fingerprint, seed from training_runs "
            "where validation = ? and correct is not null "
            "group by all having count(distinct test) >= ?",
            [name, num_results],
        ).fetchall()
    return set(rows)


def _train(
    catalog: Catalog,
    validation: ValidationRecord,
    setting: Setting,
    records: list[SelectionRecord],
    missing_seeds: "MissingSeeds",
    devices: Devices,
) -> ValidationRecord:
    """Train what is missing, and put each arm into the catalog when it ends."""
    from curate.stages.validate.arms import ArmBuilder
    from curate.stages.validate.tasks import prepare_task

    name = validation.validation
    with catalog.temporary_folder() as folder:
        task = prepare_task(catalog, setting, folder, devices.kind)
        builder = ArmBuilder(
            catalog,
            task.sample_ids,
            task.is_trainable,
            folder,
            epochs_for=task.epochs_for,
            stack_size=task.stack_size,
            num_classes=task.num_classes,
        )
        arms = builder.build(records, missing_seeds)
        if builder.num_equal == len(records):
            raise CurateError(
                "no selection holds less than what is trained on, so there is nothing to compare: "
                "samples without a label are never trained on; select from those with one, "
                "--where 'label is not null'"
            )
        _check_unchanged(catalog, setting, validation.fingerprint, records)
        num_missing = sum(len(arm.seeds) * len(arm.selections) for arm in arms)
        validation = replace(
            validation,
            epochs=task.epochs,
            num_test=task.num_test,
            num_samples=int(task.is_trainable.sum()),
            num_training_runs=validation.num_training_runs + num_missing,
        )
        _write_record(catalog, validation, records)
        items: list[Any] = [tuple(arms)] if task.is_one_pass else list(arms)
        total = sum(map(task.presentations, arms[:1] if task.is_one_pass else arms))
        fingerprints = {record.selection: record.fingerprint for record in records}
        with progress_bar("measure" if task.is_one_pass else "train", int(total)) as advance:
            for _, results in engine.map_or_raise(
                task.run,
                items,
                Resources(max(len(devices.gpus), 1), 1, devices.gpus),
                advance=advance,
                describe_item=lambda item: (
                    "cannot measure" if task.is_one_pass else f"cannot train the arm {item.name}"
                ),
            ):
                _commit(catalog, name, results, fingerprints, list(task.classes))
    return validation


def _check_unchanged(
    catalog: Catalog, setting: Setting, fingerprint: str, records: list[SelectionRecord]
) -> None:
    """CurateError where another process has changed what the arms were just made of."""
    changed = [
        record.selection
        for record in records
        if catalog.require(SelectionRecord, record.selection).fingerprint != record.fingerprint
    ]
    if changed or compute_fingerprint(catalog, setting) != fingerprint:
        subject = f"the selection '{changed[0]}'" if changed else "the corpus"
        raise CurateError(f"{subject} was changed in this moment: run the same command again")


def _write_record(
    catalog: Catalog, validation: ValidationRecord, selections: list[SelectionRecord]
) -> None:
    """Write the validation's row; the runs stay, but those of another fingerprint."""
    name = validation.validation
    with catalog.writing() as connection:
        existing = sets.find_set(connection, ValidationRecord, name)
        if existing is None or existing.fingerprint != validation.fingerprint:
            sets.replace_set(connection, validation)
            return
        connection.execute("delete from validations where validation = ?", [name])
        sets.insert_row(connection, "validations", validation.to_dict())
        for record in selections:
            is_replaced = connection.execute(
                "select 1 from training_runs where validation = ? and selection = ? "
                "and selection_fingerprint is distinct from ? limit 1",
                [name, record.selection, record.fingerprint],
            ).fetchall()
            if is_replaced:  # by other members under the same name
                for table in validation.body_tables:
                    connection.execute(
                        f"delete from {table} where validation = ? and selection = ?",
                        [name, record.selection],
                    )


def _commit(
    catalog: Catalog,
    validation: str,
    results: "list[ArmResult]",
    fingerprints: dict[str, str],
    classes: list[str],
) -> None:
    """Insert what an arm's models were right on, and compare all arms anew."""
    with catalog.writing() as connection:
        for result in results:
            key: dict[str, Any] = {
                "validation": validation,
                "arm": result.arm,
                "selection": result.selection,
                "seed": result.seed,
            }
            # An arm of two selections may have been there for one of them.
            for table in ("training_runs", "class_accuracies"):
                connection.execute(
                    f"delete from {table} where validation = $validation and arm = $arm "
                    "and seed = $seed and test = $test "
                    "and selection is not distinct from $selection",
                    {**key, "test": result.test},
                )
            run = TrainingRunRecord(
                **key,
                keep=result.keep,
                num_samples=result.num_samples,
                epochs=result.epochs,
                accuracy=float(result.is_correct.mean()),
                loss=result.loss,
                seconds=result.seconds,
                test=result.test,
                num_test=len(result.is_correct),
                correct=pack_answers(result.is_correct),
                selection_fingerprint=fingerprints.get(result.selection or ""),
                distance_99=result.distance_99,
            )
            sets.insert_row(connection, "training_runs", run._asdict())
            if result.labels is None:
                continue
            num_classes = len(classes)
            totals = np.bincount(result.labels, minlength=num_classes)
            num_correct = np.bincount(result.labels[result.is_correct], minlength=num_classes)
            counts = zip(classes, totals.tolist(), num_correct.tolist(), strict=True)
            for label, num_test, num_right in counts:
                if num_test:
                    row = ClassAccuracyRecord(
                        **key,
                        label=label,
                        num_test=num_test,
                        accuracy=num_right / num_test,
                        test=result.test,
                    )
                    sets.insert_row(connection, "class_accuracies", row._asdict())
        refresh_comparisons(connection, validation)
