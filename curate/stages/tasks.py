"""What a validation may train on, what it tests with, and another task to fine-tune on, where there is one."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate import corpus
from curate.catalog import Catalog
from curate.engine.fitting import Inputs
from curate.engine.validating import Task
from curate.errors import CurateError
from curate.models import Model
from curate.stages import material

if TYPE_CHECKING:
    from curate.stages.validate import Plan

HELD_OUT = 0.2  # of the samples, where no test shards are given


class Tasks(NamedTuple):
    """`train`: which samples of the corpus, bool [n]. `labels`: the classes of the test."""

    train: np.ndarray
    test: Task
    transfer: Task | None
    labels: list[str]


def split(catalog: Catalog, embedding: str, folder: Path, made: Model, reduction: Any, plan: "Plan") -> Tasks:
    """Prepare test and transfer shards beside `folder`/corpus, or hold a fifth out. Raises CurateError if nothing is left."""
    beside = Catalog(catalog.path / ("transfer" if plan.transfer else "test"))
    source = beside if plan.transfer else catalog
    classes = corpus.classes(source)

    def prepared(name: str, urls: list[str]) -> Inputs:
        material.prepare(beside, embedding, folder / name, [made], classes, reduction, urls)
        return Inputs(folder / name)

    def task(name: str, inputs: Inputs, chosen: np.ndarray) -> Task:
        if not chosen.any():
            raise CurateError("too few labelled samples: give test shards with --test, or a larger corpus")
        places = folder / f"places-{name}.npy"
        np.save(places, np.flatnonzero(chosen))
        return Task(inputs, places, len(classes))

    corpus_inputs = Inputs(folder / "corpus")
    learned = prepared("transfer", plan.transfer) if plan.transfer else corpus_inputs  # inputs of the task that is tested
    train = learned.array("labels") >= 0
    if plan.test:
        tested = prepared("test", plan.test)
        test = task("test", tested, tested.array("labels") >= 0)
    else:
        out = train & held_out_by_key(source, learned.array("ids"))
        test, train = task("test", learned, out), train & ~out
    if not plan.transfer:
        return Tasks(train, test, None, list(classes))
    return Tasks(corpus_inputs.array("labels") >= 0, test, task("transfer", learned, train), list(classes))


def held_out_by_key(catalog: Catalog, ids: np.ndarray) -> np.ndarray:
    """A fifth of the samples, by a hash of their keys, whatever shard they lie in: bool [n]."""
    keys = corpus.columns(catalog, ids, "key")["key"]
    limit = int(HELD_OUT * 2**32)
    return np.array([zlib.crc32(str(key).encode("utf-8", "surrogatepass")) < limit for key in keys])
