"""What a validation may train on, what it tests with, and another task to fine-tune on."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.samples import class_to_index, load_columns
from curate.errors import CurateError
from curate.models import Model
from curate.stages.training_data import write_training_data
from curate.stages.validate.worker import TaskData
from curate.training.inputs import TrainingInputs
from curate.training.pca import Reduction

HELD_OUT = 0.2  # of the samples, where no test shards are given


class DataSplit(NamedTuple):
    """`is_trainable`: which samples of the corpus, bool [n]. `classes`: those of the test."""

    is_trainable: np.ndarray
    test: TaskData
    transfer: TaskData | None
    classes: list[str]


def split_data(
    catalog: Catalog,
    embedding: str,
    folder: Path,
    model: Model,
    reduction: Reduction | None,
    *,
    test_urls: list[str],
    transfer_urls: list[str],
) -> DataSplit:
    """Prepare test and transfer shards next to `folder`/corpus, or hold out a fifth of the samples.

    Raises CurateError if nothing is left.
    """
    inner_catalog = Catalog(catalog.path / ("transfer" if transfer_urls else "test"))
    task_catalog = inner_catalog if transfer_urls else catalog  # has the classes of the test
    classes = class_to_index(task_catalog)

    def prepare(name: str, urls: list[str]) -> TrainingInputs:
        inputs = TrainingInputs(folder / name)
        write_training_data(
            inner_catalog,
            embedding,
            inputs.folder,
            [model],
            classes,
            reduction=reduction,
            urls=urls,
        )
        return inputs

    def make_task(name: str, inputs: TrainingInputs, is_used: np.ndarray) -> TaskData:
        if not is_used.any():
            raise CurateError(
                "too few labelled samples: give test shards with --test, or a larger corpus"
            )
        row_file = folder / f"rows-{name}.npy"
        np.save(row_file, np.flatnonzero(is_used))
        return TaskData(inputs, row_file, len(classes))

    corpus_inputs = TrainingInputs(folder / "corpus")
    task_inputs = prepare("transfer", transfer_urls) if transfer_urls else corpus_inputs
    is_task_trainable = task_inputs.labels >= 0
    if test_urls:
        test_inputs = prepare("test", test_urls)
        test = make_task("test", test_inputs, test_inputs.labels >= 0)
    else:
        is_held_out = is_task_trainable & held_out_by_key(task_catalog, task_inputs.sample_ids)
        test = make_task("test", task_inputs, is_held_out)
        is_task_trainable &= ~is_held_out
    if not transfer_urls:
        return DataSplit(is_task_trainable, test, None, list(classes))
    transfer = make_task("transfer", task_inputs, is_task_trainable)
    return DataSplit(corpus_inputs.labels >= 0, test, transfer, list(classes))


def held_out_by_key(catalog: Catalog, sample_ids: np.ndarray) -> np.ndarray:
    """A fifth of the samples, by a hash of their keys, in whatever shard: bool [n]."""
    keys = load_columns(catalog, sample_ids, "key")["key"]
    limit = int(HELD_OUT * 2**32)
    hashes = [zlib.crc32(str(key).encode("utf-8", "surrogatepass")) for key in keys]
    return np.array(hashes, np.int64) < limit
