"""`curate probe`: train small models on the corpus, and keep what they predict for every sample."""

import functools
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord, ProbeModelRecord, ProbeRecord, SelectionRecord
from curate.catalog.samples import class_to_index, load_labels
from curate.errors import CurateError, OptionError
from curate.execution import engine
from curate.execution.types import Resources
from curate.formats.probe_outputs import ModelSummary, read_summary
from curate.formatting import count_of, file_safe
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
from curate.stages.staleness import models_checksum, warn_if_stale
from curate.storage.locks import remove_temporary_files

if TYPE_CHECKING:
    from curate.stages.probe.worker import ProbePart
    from curate.stages.training_data import ExtraShards

_MODELS_PER_SEED = 1_000_000  # so that two seeds share no model
_DEFAULT_COUNT, _RIDGE_SUBSETS, _TRAINED_SUBSETS = 10, 2000, 200


def _check_models(arguments: Mapping[str, Any]) -> None:
    specs = _list_models(arguments["model"])
    if not specs or len(set(specs)) != len(specs):
        raise OptionError("--model: name each kind of model once; --count trains more of a kind")
    if arguments["folds"] and arguments["fraction"] < 1:
        raise OptionError("--folds and --fraction are two ways to leave samples out: give one")
    if (arguments["folds"] or 1) * (arguments["count"] or 1) > _MODELS_PER_SEED:
        raise OptionError(f"--folds times --count: at most {_MODELS_PER_SEED:,} models of a kind")
    if arguments["gradients"]:
        _check_gradients(arguments, specs)


def _check_gradients(arguments: Mapping[str, Any], specs: list[str]) -> None:
    if not arguments["test"]:
        raise OptionError("--gradients are compared with those of a target set: give its --test")
    if arguments["fraction"] < 1 or arguments["folds"]:
        raise OptionError("--gradients are of models of all samples: leave out --fraction, --folds")
    closed_form = next((spec for spec in specs if make_model(spec).build is None), None)
    if closed_form:
        raise OptionError(f"--gradients: {closed_form} is solved in closed form; name other models")


@verb(check=_check_models)
def probe(
    catalog: Catalog | str | Path,
    *,
    model: Annotated[
        list[str] | str,
        Option("A kind of model, repeatable; see `curate list models`.", check=make_model),
    ] = "mlp",
    count: Annotated[
        int | None,
        Option(
            "Models of each kind.",
            minimum=1,
            maximum=_MODELS_PER_SEED,
            default=(
                "10, 1 each of several kinds or for each fold, "
                "or 2,000 ridge and 200 other subset models"
            ),
        ),
    ] = None,
    epochs: Epochs = None,
    fraction: Annotated[
        float,
        Option("Train each model on a random subset; 0.7 for memorization.", above=0, maximum=1),
    ] = 1.0,
    folds: Annotated[
        int | None,
        Option(
            "Train each model so many times, without another share of the samples every time; "
            "for ddd.",
            minimum=2,
        ),
    ] = None,
    gradients: Annotated[
        int | None,
        Option(
            "Keep random projections of each sample's gradient, of so many numbers by model; for "
            "gradient_similarity to the samples of --test.",
            minimum=1,
            maximum=1 << 16,
        ),
    ] = None,
    within: Within = None,
    test: TestShards = None,
    embedding: EmbeddingName = None,
    seed: Seed = 0,
    device: Device = "auto",
    name: SetName = None,
) -> str:
    """Train `count` models of each kind, each on a random `fraction` of the labelled samples.

    Models are heads on an embedding (linear, mlp, ridge) or read the images (conv, resnet18,
    timm:NAME). With `folds`, every sample is judged by models that were not trained on it.
    Influence is measured on the samples of the shards `test`, and so is, with `gradients`, which
    way the gradients of these point: the signs that project gradients depend on each model's seed.
    `within` names a selection that is all of the corpus for this probe: other samples get no score
    from it. Parts that are finished when a run is killed are kept. Returns the probe's name, by
    default the model's with those of `fraction`, `folds`, `epochs`, `gradients` and `within` that
    were given.
    """
    specs = _list_models(model)
    device, gpus = engine.current_engine().find_devices(device)
    catalog = Catalog(catalog)
    parent = catalog.require(EmbeddingRecord, embedding)
    name = sets.check_name(name or default_name(specs, fraction, folds, epochs, within, gradients))
    test_set = _embed_test_set(catalog, parent, test) if test else None
    if epochs is None:
        epochs = _max_epochs(catalog, parent.embedding, specs, fraction, folds, within)
    plan = ProbePlan(
        specs,
        _counts(specs, count, fraction, folds),
        epochs,
        fraction,
        seed,
        test_set.urls if test_set else [],
        within,
        folds,
        gradients,
    )
    settings = {"embedding": parent.embedding, **plan._asdict()}
    for option in ("folds", "gradients"):  # probes from before there were these stay what they are
        if not settings[option]:
            del settings[option]
    content = [catalog.embedding_fingerprint(parent.embedding)]
    parents = [parent.run_id]
    if test_set:
        content.append(test_set.catalog.embedding_fingerprint(parent.embedding))
    if within:
        selection = catalog.require(SelectionRecord, within)
        content.append(selection.fingerprint)
        parents.append(selection.run_id)
    code_checksum = models_checksum(specs)
    fingerprint = provenance.fingerprint("probe", settings, *content, code_checksum)
    existing = catalog.find_up_to_date(ProbeRecord, name, fingerprint)
    if existing and _is_complete(catalog, existing):
        folder = catalog.probe_folder(existing.folder)
        with catalog.write_lock(folder.parent, f"the probe '{name}'"):
            _remove_other_versions(folder)
        log.info(
            "nothing to do: '%s' is this probe already (%s models)",
            name,
            f"{existing.num_models:,}",
        )
        return name
    warn_if_stale(catalog, parent)
    previous = catalog.find(ProbeRecord, name)
    folder_name = f"{name}/{fingerprint[:12]}"
    folder = catalog.probe_folder(folder_name)
    with (
        catalog.write_lock(folder.parent, f"the probe '{name}'"),
        catalog.record_run(
            "probe",
            name,
            settings,
            parents=parents,
            fingerprint=fingerprint,
            code_checksum=code_checksum,
            device=device,
        ) as run_id,
    ):
        remove_temporary_files(folder.parent)
        resources = _plan_resources(device, gpus)
        result = _train(catalog, parent.embedding, folder, plan, test_set, device, resources)
        record = ProbeRecord(
            probe=name,
            embedding=parent.embedding,
            models=specs,
            num_models=sum(plan.counts),
            epochs=plan.epochs,
            fraction=1 - 1 / folds if folds else fraction,
            seed=seed,
            test=plan.test,
            num_classes=result.num_classes,
            num_samples=result.num_samples,
            num_test=result.num_test,
            folder=folder_name,
            fingerprint=fingerprint,
            run_id=run_id,
        )
        _commit(catalog, record, result.models)
    _log_summary(catalog, record, is_replaced=previous is not None)
    return name


class ProbePlan(NamedTuple):
    """What to train: how many models of each kind, how long, on how much; and the test shards."""

    models: list[str]
    counts: list[int]
    epochs: int
    fraction: float
    seed: int
    test: list[str]
    within: str | None
    folds: int | None
    gradients: int | None


class _TrainingResult(NamedTuple):
    models: list[ModelSummary]
    num_classes: int
    num_samples: int
    num_test: int


def default_name(
    specs: list[str],
    fraction: float,
    folds: int | None,
    epochs: int | None,
    within: str | None,
    gradients: int | None,
) -> str:
    """The model's name, or diverse for several; what it is trained on, and how long if given."""
    words = [
        "diverse" if len(specs) > 1 else file_safe(specs[0]),
        f"{fraction:g}" if fraction < 1 else None,
        f"folds{folds}" if folds else None,
        f"epochs{epochs}" if epochs else None,
        f"gradients{gradients}" if gradients else None,
        f"in-{within}" if within else None,
    ]
    return "-".join(filter(None, words))


def _list_models(model: list[str] | str) -> list[str]:
    return [model] if isinstance(model, str) else list(model)


def _embed_test_set(
    catalog: Catalog, parent: EmbeddingRecord, patterns: list[str] | str
) -> "ExtraShards":
    from curate.stages.training_data import check_no_leakage, embed_test_set

    test_set = embed_test_set(catalog, parent, patterns)
    check_no_leakage(catalog, None, test_set)
    return test_set


def _is_complete(catalog: Catalog, record: ProbeRecord) -> bool:
    """Whether every part of a probe exists; one whose folder was removed is trained again."""
    try:
        return [read_summary(part) for part in catalog.probe_parts(record)] != []
    except CurateError:
        return False


def _counts(specs: list[str], count: int | None, fraction: float, folds: int | None) -> list[int]:
    """Models of each kind. A closed form on all samples has no randomness, so there is one."""
    counts = []
    for spec in specs:
        is_closed_form = make_model(spec).build is None
        if folds:
            counts.append((count or 1) * folds)
        elif fraction == 1 and is_closed_form:
            counts.append(1)
        elif fraction < 1:
            counts.append(count or (_RIDGE_SUBSETS if is_closed_form else _TRAINED_SUBSETS))
        else:
            counts.append(count or (_DEFAULT_COUNT if len(specs) == 1 else 1))
    return counts


def _max_epochs(
    catalog: Catalog,
    embedding: str,
    specs: list[str],
    fraction: float,
    folds: int | None,
    within: str | None,
) -> int:
    """The most epochs that any of the models needs on a corpus of this size."""
    with catalog.reading() as connection:
        ((num_labelled,),) = connection.execute(
            "select count(label) from samples where shard_id in "
            "(select shard_id from embedded_shards where embedding = $1) and ($2 is null or "
            "sample_id in (select sample_id from members where selection = $2))",
            [embedding, within],
        ).fetchall()
    share = 1 - 1 / folds if folds else fraction
    num_rows = max(round(share * num_labelled), 1)
    return max(num_epochs(make_model(spec, fraction), num_rows) for spec in specs)


def _plan_resources(device: str, gpus: tuple[int, ...]) -> Resources:
    """One part per GPU; on CPUs one part per machine, whose program uses all its cores."""
    cores, cores_per_machine = engine.current_engine().count_cores(device)
    if gpus:
        return Resources(len(gpus), max(cores // len(gpus), 1), gpus)
    return Resources(1, cores_per_machine)


def _list_parts(plan: ProbePlan) -> "list[ProbePart]":
    """Models of one kind, as many as train as one tensor program."""
    from curate.stages.probe.worker import ProbePart

    parts = []
    for spec, count in zip(plan.models, plan.counts, strict=True):
        stack_size = make_model(spec).stack_size
        seeds = [plan.seed * _MODELS_PER_SEED + index for index in range(count)]
        for start in range(0, count, stack_size):
            name = f"{file_safe(spec)}-{start:06d}"
            parts.append(ProbePart(name, spec, seeds[start : start + stack_size]))
    return parts


def _train(
    catalog: Catalog,
    embedding: str,
    out: Path,
    plan: ProbePlan,
    test_set: "ExtraShards | None",
    device: str,
    resources: Resources,
) -> _TrainingResult:
    """Train the parts that are missing."""
    from curate.stages.probe.worker import TrainPart
    from curate.stages.training_data import warn_of_unlabelled, write_training_data
    from curate.training.inputs import TrainingInputs

    models = [make_model(spec) for spec in plan.models]
    classes = class_to_index(catalog)
    with catalog.temporary_folder() as folder:
        inputs, test = TrainingInputs(folder / "corpus"), None
        reduction = write_training_data(
            catalog,
            embedding,
            inputs.folder,
            models,
            functools.partial(load_labels, catalog, classes=classes),
            within=plan.within,
        )
        if test_set:
            test = TrainingInputs(folder / "test")
            write_training_data(
                test_set.catalog,
                embedding,
                test.folder,
                models,
                functools.partial(load_labels, test_set.catalog, classes=classes),
                reduction=reduction,
                urls=plan.test,
            )
        warn_of_unlabelled(inputs)
        num_labelled = int((inputs.labels >= 0).sum())
        num_trained = round(plan.fraction * num_labelled)
        if plan.folds:
            num_trained = num_labelled - -(-num_labelled // plan.folds)
        if num_labelled < 2 or num_trained < 1:
            raise CurateError(
                f"the embedding '{embedding}' has {count_of(num_labelled, 'labelled sample')}: "
                "too few to train on"
            )
        if test and not (test.labels >= 0).any():
            raise CurateError(
                f"none of the {count_of(len(test.labels), 'test sample')} has a label that the "
                "corpus has too: give others with --test"
            )
        if plan.folds and plan.folds > num_labelled:
            raise CurateError(
                f"--folds {plan.folds}: there are {num_labelled:,} labelled samples; give fewer"
            )
        task = TrainPart(
            inputs,
            test,
            len(classes),
            plan.fraction,
            plan.folds,
            plan.seed * _MODELS_PER_SEED,
            plan.epochs,
            device,
            out,
            plan.gradients,
        )
        parts = _list_parts(plan)
        passes = sum(
            len(part.seeds) * (plan.epochs if make_model(part.spec).build else 1) for part in parts
        )
        summaries: list[ModelSummary] = []
        with progress_bar("train", passes * num_trained) as advance:
            for _, part_models in engine.map_or_raise(
                task,
                parts,
                resources,
                advance=advance,
                describe_item=lambda part: f"cannot train {part.spec}",
                in_order=True,
            ):
                summaries += part_models
        num_test = int((test.labels >= 0).sum()) if test else 0
        return _TrainingResult(summaries, len(classes), num_labelled, num_test)


def _commit(catalog: Catalog, record: ProbeRecord, models: list[ModelSummary]) -> None:
    """The probe and its models into the catalog; what an older probe of that name left goes."""
    with catalog.writing() as connection:
        sets.replace_set(connection, record)
        for model in models:
            row = ProbeModelRecord(probe=record.probe, **asdict(model))
            sets.insert_row(connection, "probe_models", row._asdict())
    _remove_other_versions(catalog.probe_folder(record.folder))


def _remove_other_versions(folder: Path) -> None:
    """Remove parts of replaced probes, and of models that were not finished."""
    for version in folder.parent.iterdir():
        if version.is_dir() and version != folder:
            shutil.rmtree(version, ignore_errors=True)
    remove_temporary_files(folder)


def _log_summary(catalog: Catalog, record: ProbeRecord, *, is_replaced: bool) -> None:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select model, count(*), avg(accuracy), avg(left_out_accuracy), avg(test_accuracy) "
            "from probe_models where probe = ? group by model order by min(rowid)",
            [record.probe],
        ).fetchall()
    log.info(
        "probe '%s'%s: %s samples, %d epochs",
        record.probe,
        " replaced" if is_replaced else "",
        f"{record.num_samples:,}",
        record.epochs,
    )
    subjects = ("what it learned", "what was left out", "the test samples")
    for model, count, *accuracies in rows:
        accuracy_texts = [
            f"{accuracy:.1%} of {subject}"
            for accuracy, subject in zip(accuracies, subjects, strict=True)
            if accuracy is not None
        ]
        log.info("  %s × %s: right on %s", f"{count:,}", model, ", ".join(accuracy_texts))
