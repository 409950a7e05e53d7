"""What each task of a validation needs: data in a folder, and the callable that trains or measures.

The modules of what is trained are imported by the task that needs them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import load_columns, load_members
from curate.errors import CurateError
from curate.formats.sample_ids import are_members, shard_id_of
from curate.formats.shard_patterns import expand_patterns
from curate.formats.vectors import read_all_sample_ids, read_sample_ids
from curate.models import Model, make_model, num_epochs, steps_per_epoch
from curate.progress import progress_bar
from curate.stages.training_data import shard_ids_of_urls
from curate.stages.validate.setting import (
    CAPTIONS,
    CLUSTERS,
    COVERAGE,
    LABELS,
    SELF_SUPERVISED,
    Setting,
)
from curate.stages.validate.split import HELD_OUT, held_out_by_key, split_data
from curate.stages.validate.worker import (
    Arm,
    ArmResult,
    HeldOut,
    MeasureCoverage,
    PairData,
    TrainArm,
    TrainProjection,
    TrainWithoutLabels,
)
from curate.training.nearest import MAX_HELD_OUT, draw_samples
from curate.training.pca import fit_reduction, write_reduced

_CAPTION_EPOCHS = 20
_CAPTION_STACK = 10  # pairs of heads that train as one tensor program


class PreparedTask(NamedTuple):
    """`run` is what the workers call for an arm, or for all arms in one tuple (`is_one_pass`).

    `sample_ids` are the rows that arms index, int64 [n], `is_trainable` says which may be trained
    on, bool [n]. `num_classes` is the least size of an arm, `classes` are those that results count.
    `presentations` says how often samples are shown in an arm.
    """

    run: Callable[[Any], list[ArmResult]]
    sample_ids: np.ndarray
    is_trainable: np.ndarray
    num_test: int
    epochs: int
    epochs_for: Callable[[int], int]
    presentations: Callable[[Arm], int]
    stack_size: int = 1
    classes: tuple[str, ...] = ()
    num_classes: int = 1
    is_one_pass: bool = False


def prepare_task(catalog: Catalog, setting: Setting, folder: Path, device: str) -> PreparedTask:
    """Write what the task needs to `folder`. Raises CurateError where the corpus lacks it."""
    prepare = {
        LABELS: _prepare_classification,
        CLUSTERS: _prepare_classification,
        CAPTIONS: _prepare_captions,
        COVERAGE: _prepare_coverage,
        SELF_SUPERVISED: _prepare_self_supervised,
    }
    return prepare[setting.task](catalog, setting, folder, device)


def _epochs_rule(
    setting: Setting, epochs: int, num_samples: int, steps: Callable[[int], int]
) -> Callable[[int], int]:
    """The epochs of an arm: the same for all, or as many steps as everything has."""
    if setting.schedule != "iterations":
        return lambda num_rows: epochs
    return lambda num_rows: max(round(epochs * steps(num_samples) / steps(num_rows)), 1)


def _prepare_classification(
    catalog: Catalog, setting: Setting, folder: Path, device: str
) -> PreparedTask:
    model = make_model(setting.model)
    split = split_data(catalog, setting, model, folder)
    num_samples = int(split.is_trainable.sum())
    epochs = setting.epochs or num_epochs(model, num_samples)
    transfer = split.transfer
    fine_tuning = transfer.num_presentations(model) if transfer else 0
    return PreparedTask(
        run=TrainArm(
            setting.model, split.inputs, split.num_classes, split.tests, split.transfer, device
        ),
        sample_ids=split.inputs.sample_ids,
        is_trainable=split.is_trainable,
        num_test=sum(len(test.load_rows()) for test in split.tests),
        epochs=epochs,
        epochs_for=_epochs_rule(
            setting, epochs, num_samples, lambda num_rows: steps_per_epoch(model, num_rows)
        ),
        presentations=lambda arm: (
            arm.epochs * arm.load_subsets().size + fine_tuning * len(arm.seeds)
        ),
        stack_size=model.stack_size,
        classes=tuple(split.classes),
        num_classes=split.num_classes,
    )


def _prepare_self_supervised(
    catalog: Catalog, setting: Setting, folder: Path, device: str
) -> PreparedTask:
    from curate.training.self_supervised import (
        num_presentations,
        num_steps,
        self_supervised_model,
    )

    model: Model = self_supervised_model(setting.model)
    split = split_data(catalog, setting, model, folder)
    if split.transfer is None:
        raise CurateError("--task self-supervised needs labelled shards to test on: --transfer")
    num_samples = int(split.is_trainable.sum())
    steps = num_steps(model, num_samples)
    if setting.epochs:
        steps = max(round(setting.epochs * num_samples / model.batch_size), 1)
    return PreparedTask(
        run=TrainWithoutLabels(setting.model, split.inputs, split.tests, split.transfer, device),
        sample_ids=split.inputs.sample_ids,
        is_trainable=split.is_trainable,
        num_test=sum(len(test.load_rows()) for test in split.tests),
        epochs=max(round(steps * model.batch_size / num_samples), 1),
        epochs_for=lambda num_rows: steps,  # every arm trains for as many steps
        presentations=lambda arm: num_presentations(model, arm.load_subsets().shape[1], steps),
        classes=tuple(split.classes),
        num_classes=2,  # images that are compared with each other
    )


def _prepare_captions(
    catalog: Catalog, setting: Setting, folder: Path, device: str
) -> PreparedTask:
    from curate.training import contrastive

    extra = Catalog(catalog.path / setting.extra_folder)
    sample_ids = _captioned_ids(catalog, setting, None)
    members = _members_within(catalog, setting)
    if members is not None:
        sample_ids = sample_ids[are_members(sample_ids, members)]
    reductions: dict[str, Any] = {}

    def write_pairs(
        name: str, source: Catalog, urls: list[str] | None, ids: np.ndarray
    ) -> PairData:
        paths = {side: folder / f"{name}-{side}.npy" for side in ("images", "texts")}
        for side, files in (
            ("images", source.vector_files(setting.embedding)),
            ("texts", source.caption_files(setting.embedding)),
        ):
            files = _files_of_urls(source, files, urls)
            with progress_bar("reduce", 2 * sum(files.values())) as advance:
                reductions[side] = reductions.get(side) or fit_reduction(files, 0, advance)
                write_reduced(files, ids, reductions[side], paths[side], advance)
        captions = load_columns(source, ids, "caption")["caption"]
        _, numbers = np.unique(np.asarray(captions, str), return_inverse=True)
        np.save(folder / f"{name}-captions.npy", numbers)
        return PairData(name, paths["images"], paths["texts"], folder / f"{name}-captions.npy")

    pairs = write_pairs("corpus", catalog, None, sample_ids)
    is_trainable = np.ones(len(sample_ids), bool)
    tests, num_test = [], 0
    if setting.test:
        for number, pattern in enumerate(setting.test):
            urls = expand_patterns([pattern])
            ids = _captioned_ids(extra, setting, urls)
            tests.append(write_pairs(f"test-{number}", extra, urls, ids)._replace(name=pattern))
            num_test += len(ids)
    else:
        is_held_out = held_out_by_key(catalog, sample_ids)
        is_trainable = ~is_held_out
        held_out_paths = []
        for path in (pairs.images, pairs.texts, pairs.caption_ids):
            held_out_paths.append(path.with_stem(f"{path.stem}-held-out"))
            np.save(held_out_paths[-1], np.load(path, mmap_mode="r")[is_held_out])
        tests.append(PairData(HELD_OUT, *held_out_paths))
        num_test = int(is_held_out.sum())
    num_samples = int(is_trainable.sum())
    if num_samples < 2 or not num_test:
        raise CurateError("too few captions to train on and to test with: give a larger corpus")
    epochs = setting.epochs or _CAPTION_EPOCHS
    return PreparedTask(
        run=TrainProjection(pairs.images, pairs.texts, tuple(tests), device),
        sample_ids=sample_ids,
        is_trainable=is_trainable,
        num_test=num_test,
        epochs=epochs,
        epochs_for=_epochs_rule(setting, epochs, num_samples, contrastive.num_steps),
        presentations=lambda arm: arm.epochs * arm.load_subsets().size,
        stack_size=_CAPTION_STACK,
        num_classes=2,  # pairs that are told apart
    )


def _prepare_coverage(
    catalog: Catalog, setting: Setting, folder: Path, device: str
) -> PreparedTask:
    extra = Catalog(catalog.path / setting.extra_folder)
    files = catalog.vector_files(setting.embedding)
    sample_ids = read_all_sample_ids(files)
    members = _members_within(catalog, setting)
    if members is not None:
        sample_ids = sample_ids[are_members(sample_ids, members)]
    tests: list[HeldOut] = []
    num_test = 0

    def add_test(name: str, ids: np.ndarray, test_files: tuple[str, ...] | None) -> None:
        nonlocal num_test
        ids = draw_samples(ids, MAX_HELD_OUT, setting.seed)
        path = folder / f"test-{len(tests)}.npy"
        np.save(path, ids)
        tests.append(HeldOut(name, path, test_files))
        num_test += len(ids)

    if setting.test:
        for pattern in setting.test:
            test_files = _files_of_urls(
                extra, extra.vector_files(setting.embedding), expand_patterns([pattern])
            )
            ids = np.concatenate([read_sample_ids(file) for file in test_files])
            add_test(pattern, ids, tuple(test_files))
    else:
        is_held_out = held_out_by_key(catalog, sample_ids)
        add_test(HELD_OUT, sample_ids[is_held_out], None)
        sample_ids = sample_ids[~is_held_out]
    if not len(sample_ids) or not num_test:
        raise CurateError("too few samples to hold some out: give a larger corpus, or --test")
    np.save(folder / "trainable.npy", sample_ids)
    total = (len(tests) + 1) * sum(files.values()) + num_test
    return PreparedTask(
        run=MeasureCoverage(tuple(files), folder / "trainable.npy", tuple(tests)),
        sample_ids=sample_ids,
        is_trainable=np.ones(len(sample_ids), bool),
        num_test=num_test,
        epochs=0,
        epochs_for=lambda num_rows: 0,
        presentations=lambda arm: total,
        stack_size=1 << 16,
        is_one_pass=True,
    )


def _members_within(catalog: Catalog, setting: Setting) -> np.ndarray | None:
    if setting.within is None:
        return None
    catalog.require(SelectionRecord, setting.within)
    return load_members(catalog, setting.within)


def _captioned_ids(catalog: Catalog, setting: Setting, urls: list[str] | None) -> np.ndarray:
    """The sorted ids of samples that have vectors of an image and of a caption, int64 [n]."""
    files = _files_of_urls(catalog, catalog.caption_files(setting.embedding), urls)
    ids = [read_sample_ids(file) for file in files]
    if not sum(map(len, ids)):
        raise CurateError(
            f"the embedding '{setting.embedding}' has no vectors of captions: "
            "embed with --captions, or choose another --task"
        )
    return np.concatenate(ids)


def _files_of_urls(
    catalog: Catalog, files: dict[str, int], urls: list[str] | None
) -> dict[str, int]:
    if urls is None:
        return files
    shard_ids = shard_ids_of_urls(catalog, urls)
    return {file: count for file, count in files.items() if shard_id_of(file) in shard_ids}
