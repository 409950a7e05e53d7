"""`curate validate`: train on selections, on random samples and on everything, and compare."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ClassAccuracyRecord,
    EmbeddingRecord,
    SelectionRecord,
    TrainingRunRecord,
    ValidationRecord,
)
from curate.catalog.samples import class_to_index
from curate.errors import OptionError
from curate.execution import engine
from curate.execution.devices import find_local_devices
from curate.execution.types import Resources
from curate.formatting import file_safe
from curate.models import make_model, num_epochs
from curate.options import (
    Device,
    EmbeddingName,
    Epochs,
    Option,
    Seed,
    SetName,
    TestShards,
    Within,
    verb,
)
from curate.progress import log, progress_bar
from curate.stages.select.stage import DEFAULT_BALANCE, Balance, check_strategy, select
from curate.stages.staleness import models_checksum, warn_if_stale
from curate.stages.validate.verdicts import read_verdicts

if TYPE_CHECKING:
    from curate.stages.training_data import ExtraShards
    from curate.stages.validate.worker import TrainedModel

SCHEDULES = ("epochs", "iterations")
_DEFAULT_SCORING, _DEFAULT_STRATEGY = "ssl_prototypes", "hardest"

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
        str | None, Option("Scoring to rank by, for --keep.", default="ssl_prototypes")
    ] = None,
    balance: Balance = DEFAULT_BALANCE,
    model: Annotated[
        str, Option("What to train; see `curate list models`.", check=check_trainable)
    ] = "mlp",
    seeds: Annotated[int, Option("Training runs per arm.", minimum=2)] = 5,
    epochs: Epochs = None,
    schedule: Schedule = "epochs",
    within: Within = None,
    test: TestShards = None,
    transfer: Annotated[
        list[str] | str | None,
        Option(
            "Shards of another task to fine-tune on and test for; repeatable.", metavar="SHARDS"
        ),
    ] = None,
    embedding: EmbeddingName = None,
    seed: Seed = 0,
    device: Device = "auto",
    name: SetName = None,
) -> str:
    """Compare selections with random ones of the same size and balance, and with the whole corpus.

    The selections are those named, or those of the grid `keep` × `strategy` by `scoring`, which are
    made, or all that the catalog has. `seeds` models train in each arm, paired by seed. `within`
    names a selection that is all of the corpus for this comparison. Tested on the shards `test`, or
    on a fifth of the corpus held out by a hash of the keys. With the shards of another task in
    `transfer`, every model is then fine-tuned on that task and tested for it (Fig. 4B of Sorscher
    et al. 2022). Each training run is kept when it ends, so that the same command continues after
    an interruption. Returns the validation's name.
    """
    device, gpus = find_local_devices(device)
    catalog = Catalog(catalog)
    parent = catalog.require(EmbeddingRecord, embedding)
    keeps = [keep] if isinstance(keep, int | float) else list(keep or [])
    grid = itertools.product(keeps, _as_list(strategy) or [_DEFAULT_STRATEGY])
    names = list(selections or [])
    names += [
        select(
            catalog,
            keep=fraction,
            scoring=scoring or _DEFAULT_SCORING,
            strategy=strategy_name,
            balance=balance,
            within=within,
        )
        for fraction, strategy_name in grid
    ]
    names = list(dict.fromkeys(names or catalog.list_names(SelectionRecord)))
    records = [catalog.require(SelectionRecord, selection) for selection in names]
    if not records:
        catalog.require(SelectionRecord, None)  # raises, and says how to make one
    extra_shards = _embed_extra_shards(catalog, parent, test, transfer)
    plan = ValidationPlan(
        model,
        seeds,
        epochs,
        schedule,
        seed,
        within,
        extra_shards.test.urls if extra_shards.test else [],
        extra_shards.transfer.urls if extra_shards.transfer else [],
    )
    settings = {"embedding": parent.embedding, "selections": names, **plan._asdict()}
    content = [record.fingerprint for record in records]
    content.append(catalog.embedding_fingerprint(parent.embedding))
    content += [
        extra.catalog.embedding_fingerprint(parent.embedding) for extra in extra_shards if extra
    ]
    if within:
        content.append(catalog.require(SelectionRecord, within).fingerprint)
    code_checksum = models_checksum([model])
    fingerprint = provenance.fingerprint("validate", settings, *content, code_checksum)
    name = sets.check_name(name or _default_name(plan))
    existing = catalog.find(ValidationRecord, name)
    if (
        existing
        and existing.fingerprint == fingerprint
        and len(_finished_runs(catalog, name)) == existing.num_training_runs
    ):
        log.info(
            "nothing to do: '%s' is this validation already (%s training runs)",
            name,
            existing.num_training_runs,
        )
    else:
        for record in records:
            warn_if_stale(catalog, record)
        with (
            catalog.write_lock(catalog.path / "validations" / name, f"the validation '{name}'"),
            catalog.record_run(
                "validate",
                name,
                settings,
                parents=[parent.run_id, *(record.run_id for record in records)],
                fingerprint=fingerprint,
                code_checksum=code_checksum,
                device=device,
            ) as run_id,
        ):
            validation = ValidationRecord(
                validation=name,
                embedding=parent.embedding,
                model=model,
                epochs=0,  # known when the corpus has been read, as the counts below are
                schedule=schedule,
                seeds=seeds,
                seed=seed,
                test=plan.test,
                num_test=0,
                num_samples=0,
                num_training_runs=0,
                fingerprint=fingerprint,
                run_id=run_id,
                transfer=plan.transfer,
            )
            resources = Resources(max(len(gpus), 1), 1, gpus)
            _compare(catalog, validation, plan, records, resources, device)
    for verdict in read_verdicts(catalog, name):
        (log.warning if verdict.is_alarming else log.info)("%s", verdict.text)
    return name


class ValidationPlan(NamedTuple):
    """How every arm is trained, and the URLs of the test shards and of another task's."""

    model: str
    seeds: int
    epochs: int | None
    schedule: str
    seed: int
    within: str | None
    test: list[str]
    transfer: list[str]


class _ExtraShardsPair(NamedTuple):
    test: "ExtraShards | None"
    transfer: "ExtraShards | None"


def _as_list(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _embed_extra_shards(
    catalog: Catalog,
    parent: EmbeddingRecord,
    test: list[str] | str | None,
    transfer: list[str] | str | None,
) -> _ExtraShardsPair:
    """Embed test shards and another task's. Test shards are of the task that is tested."""
    from curate.stages.training_data import check_no_leakage, embed_test_set

    folder = "transfer" if transfer else "test"
    test_set = embed_test_set(catalog, parent, test, folder) if test else None
    transfer_set = embed_test_set(catalog, parent, transfer, folder) if transfer else None
    if test_set and transfer_set:
        check_no_leakage(transfer_set.catalog, transfer_set.urls, test_set)
    elif test_set:
        check_no_leakage(catalog, None, test_set)
    return _ExtraShardsPair(test_set, transfer_set)


def _default_name(plan: ValidationPlan) -> str:
    words = [
        file_safe(plan.model),
        plan.schedule if plan.schedule != "epochs" else None,
        f"in-{plan.within}" if plan.within else None,
        "transfer" if plan.transfer else None,
    ]
    return "-".join(filter(None, words))


def _finished_runs(catalog: Catalog, name: str) -> set[tuple[str, str | None, int]]:
    """The training runs in the catalog: (arm, selection, seed)."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select arm, selection, seed from training_runs where validation = ?", [name]
        ).fetchall()
    return set(rows)


def _compare(
    catalog: Catalog,
    validation: ValidationRecord,
    plan: ValidationPlan,
    selections: list[SelectionRecord],
    resources: Resources,
    device: str,
) -> None:
    """Train what is missing, and put each arm into the catalog when it ends."""
    from curate.stages.training_data import write_training_data
    from curate.stages.validate.arms import ArmBuilder
    from curate.stages.validate.split import split_data
    from curate.stages.validate.worker import TrainArm
    from curate.training.inputs import TrainingInputs

    model, classes = make_model(plan.model), class_to_index(catalog)
    name, embedding = validation.validation, validation.embedding
    with catalog.temporary_folder() as folder:
        inputs = TrainingInputs(folder / "corpus")
        reduction = write_training_data(
            catalog, embedding, inputs.folder, [model], classes, within=plan.within
        )
        split = split_data(
            catalog,
            embedding,
            folder,
            model,
            reduction,
            test_urls=plan.test,
            transfer_urls=plan.transfer,
        )
        num_samples = int(split.is_trainable.sum())
        epochs = plan.epochs or num_epochs(model, num_samples)
        seeds = [plan.seed + index for index in range(plan.seeds)]
        builder = ArmBuilder(
            catalog,
            model,
            seeds,
            epochs,
            inputs.sample_ids,
            split.is_trainable,
            folder,
            equal_iterations=plan.schedule == "iterations",
        )
        arms = builder.build(selections)
        validation = replace(
            validation,
            epochs=epochs,
            num_test=len(split.test.load_rows()),
            num_samples=num_samples,
            num_training_runs=sum(len(arm.seeds) * len(arm.selections) for arm in arms),
        )
        _reserve_name(catalog, validation)
        finished = _finished_runs(catalog, name)
        missing = [
            arm
            for arm in arms
            if not {(arm.name, selection, arm.seeds[0]) for selection in arm.selections} <= finished
        ]
        task = TrainArm(plan.model, inputs, len(classes), split.test, split.transfer, device)
        fine_tuning = split.transfer.num_presentations(model) if split.transfer else 0
        total = sum(
            arm.epochs * arm.load_subsets().size + fine_tuning * len(arm.seeds) for arm in missing
        )
        with progress_bar("train", int(total)) as advance:
            for _, trained in engine.map_or_raise(
                task,
                missing,
                resources,
                advance=advance,
                describe_item=lambda arm: f"cannot train the arm {arm.name}",
            ):
                _commit(catalog, name, trained, split.classes)


def _reserve_name(catalog: Catalog, validation: ValidationRecord) -> None:
    """Write the validation's row; it replaces another of that name, but not its own half."""
    with catalog.writing() as connection:
        existing = sets.find_set(connection, ValidationRecord, validation.validation)
        if existing and existing.fingerprint == validation.fingerprint:
            connection.execute(
                "update validations set run_id = ? where validation = ?",
                [validation.run_id, validation.validation],
            )
        else:
            sets.replace_set(connection, validation)


def _commit(
    catalog: Catalog, validation: str, trained: "list[TrainedModel]", classes: list[str]
) -> None:
    with catalog.writing() as connection:
        for model in trained:
            key: dict[str, Any] = {
                "validation": validation,
                "arm": model.arm,
                "selection": model.selection,
                "seed": model.seed,
            }
            # An arm of two selections may have been there for one of them.
            for table in ("training_runs", "class_accuracies"):
                connection.execute(
                    f"delete from {table} where validation = $validation and arm = $arm "
                    "and seed = $seed and selection is not distinct from $selection",
                    key,
                )
            run = TrainingRunRecord(
                **key,
                keep=model.keep,
                num_samples=model.num_samples,
                epochs=model.epochs,
                accuracy=model.accuracy,
                loss=model.loss,
                seconds=model.seconds,
            )
            sets.insert_row(connection, "training_runs", run._asdict())
            counts = zip(
                classes, model.class_totals.tolist(), model.class_correct.tolist(), strict=True
            )
            for label, num_test, num_correct in counts:
                if num_test:
                    accuracy = num_correct / num_test
                    row = ClassAccuracyRecord(
                        **key, label=label, num_test=num_test, accuracy=accuracy
                    )
                    sets.insert_row(connection, "class_accuracies", row._asdict())
