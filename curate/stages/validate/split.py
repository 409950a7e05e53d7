"""What a validation may train on, what it tests with, and another task to fine-tune on."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.samples import (
    LabelBins,
    class_to_index,
    iterate_column,
    load_clusters,
    load_columns,
    load_labels,
    make_label_bins,
)
from curate.errors import CurateError
from curate.formats.shard_patterns import expand_patterns
from curate.models import Model
from curate.stages.training_data import warn_of_unlabelled, write_training_data
from curate.stages.validate.setting import CLUSTERS, LABELS, SELF_SUPERVISED, Setting
from curate.stages.validate.worker import TaskData
from curate.training.inputs import TrainingInputs

HELD_OUT_SHARE = 0.2  # of the samples, where no test shards are given
HELD_OUT = "held out"  # the name of that test set


class DataSplit(NamedTuple):
    """`is_trainable`: which samples of the corpus, bool [n]. `classes`: those of the tests."""

    inputs: TrainingInputs
    is_trainable: np.ndarray
    tests: tuple[TaskData, ...]
    transfer: TaskData | None
    classes: list[str]
    num_classes: int  # of the corpus


def split_data(catalog: Catalog, setting: Setting, model: Model, folder: Path) -> DataSplit:
    """Write what the models read to `folder`, and say what is trained on and tested with.

    Without test shards a fifth of the samples is held out. Raises CurateError if nothing is left.
    """
    extra_catalog = Catalog(catalog.path / setting.extra_folder)
    task_catalog = extra_catalog if setting.transfer else catalog  # has the classes of the tests
    bins = make_label_bins(catalog, setting.label_bins) if setting.label_bins else None
    classes = bins.names if bins else _list_classes(task_catalog, setting)
    corpus_classes = classes
    if setting.transfer:
        corpus_classes = _list_classes(catalog, setting, is_tested=False)
    if setting.transfer and len(classes) < 2:
        raise CurateError(
            f"the task of --transfer has one class, '{classes[0]}': "
            "there is nothing to tell apart; give other shards"
        )
    corpus = TrainingInputs(folder / "corpus")
    reduction = write_training_data(
        catalog,
        setting.embedding,
        corpus.folder,
        [model],
        _labels_function(catalog, setting, corpus_classes, bins),
        within=setting.within,
    )

    def prepare(name: str, patterns: list[str]) -> TrainingInputs:
        inputs = TrainingInputs(folder / name)
        write_training_data(
            extra_catalog,
            setting.embedding,
            inputs.folder,
            [model],
            _labels_function(extra_catalog, setting, classes, bins),
            reduction=reduction,
            urls=expand_patterns(patterns),
        )
        return inputs

    def make_task(name: str, inputs: TrainingInputs, is_used: np.ndarray) -> TaskData:
        if not is_used.any():
            raise CurateError(
                "too few labelled samples: give test shards with --test, or a larger corpus"
            )
        row_file = folder / f"rows-{len(list(folder.glob('rows-*')))}.npy"
        np.save(row_file, np.flatnonzero(is_used))
        return TaskData(name, inputs, row_file, len(classes))

    if setting.task == LABELS:
        warn_of_unlabelled(corpus)
    task_inputs = prepare("transfer", setting.transfer) if setting.transfer else corpus
    is_task_trainable = task_inputs.labels >= 0
    if setting.test:
        tests = []
        for number, pattern in enumerate(setting.test):
            inputs = prepare(f"test-{number}", [pattern])
            tests.append(make_task(pattern, inputs, inputs.labels >= 0))
    else:
        is_held_out = is_task_trainable & held_out_by_key(task_catalog, task_inputs.sample_ids)
        tests = [make_task(HELD_OUT, task_inputs, is_held_out)]
        is_task_trainable &= ~is_held_out
    transfer, is_trainable = None, is_task_trainable
    if setting.transfer:
        transfer = make_task("transfer", task_inputs, is_task_trainable)
        is_trainable = corpus.labels >= 0
        if setting.task == SELF_SUPERVISED:
            is_trainable = np.ones(len(corpus.sample_ids), bool)
    return DataSplit(corpus, is_trainable, tuple(tests), transfer, classes, len(corpus_classes))


def _list_classes(catalog: Catalog, setting: Setting, *, is_tested: bool = True) -> list[str]:
    """Labels, or the numbers of the clusters that are predicted."""
    if setting.task == SELF_SUPERVISED and not is_tested:
        return []  # the corpus needs no labels
    if setting.task != CLUSTERS:
        return list(class_to_index(catalog))
    with catalog.reading() as connection:
        ((k,),) = connection.execute(
            "select k from clusterings where clustering = ?", [setting.clustering]
        ).fetchall()
    return [str(cluster_id) for cluster_id in range(k)]


def _labels_function(
    catalog: Catalog, setting: Setting, classes: list[str], bins: LabelBins | None
) -> Callable[[np.ndarray], np.ndarray]:
    """From sample ids to class numbers, int64 [n], −1 for none."""
    if setting.task == CLUSTERS:
        return lambda sample_ids: load_clusters(catalog, str(setting.clustering), sample_ids)
    if bins:
        return lambda sample_ids: bins.encode(load_columns(catalog, sample_ids, "label")["label"])
    index = {label: number for number, label in enumerate(classes)}
    return lambda sample_ids: load_labels(catalog, sample_ids, index)


def held_out_by_key(catalog: Catalog, sample_ids: np.ndarray) -> np.ndarray:
    """A fifth of the samples, by a hash of their keys, in whatever shard: bool [n]."""
    limit = int(HELD_OUT_SHARE * 2**32)
    is_held_out = np.zeros(len(sample_ids), bool)
    for index, keys in iterate_column(catalog, sample_ids, "key"):
        hashes = [zlib.crc32(str(key).encode("utf-8", "surrogatepass")) for key in keys]
        is_held_out[index] = np.array(hashes, np.int64) < limit
    return is_held_out
