r"""Make a catalog's task realisable: a linear teacher, trained on the true labels, gives every
sample a new label.

    curate embed 'cifar10-train-*.tar' --encoder efficientnet_lite0@128 -c realisable
    python benchmarks/relabel.py realisable 'cifar10-test-*.tar'
    curate run scaling -c realisable --from select \
        --set validate.model=linear --set fit.model=linear

Then a linear model can be right on every sample, as in the theory (docs/theory.md): no floor hides
what pruning does. Only the catalog's labels change, and those of its test shards; the shards do
not.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from curate.catalog.catalog import Catalog
from curate.catalog.records import EmbeddingRecord
from curate.catalog.samples import class_to_index, load_labels
from curate.models import make_model, num_epochs
from curate.stages.training_data import embed_test_set, write_training_data
from curate.training.inputs import TrainingInputs
from curate.training.loop import Stack, predict, train

LINEAR = make_model("linear")
_UPDATE_LABELS = """
update samples set label = new_labels.label
from (select unnest($sample_ids) as sample_id, unnest($labels) as label) as new_labels
where samples.sample_id = new_labels.sample_id
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("catalog", type=Path)
    parser.add_argument("test", nargs="+", help="test shards")
    arguments = parser.parse_args()
    catalog = Catalog(arguments.catalog)
    parent = catalog.require(EmbeddingRecord, None)
    test = embed_test_set(catalog, parent, arguments.test)
    classes = class_to_index(catalog)
    with tempfile.TemporaryDirectory() as name:
        corpus_inputs = TrainingInputs(Path(name) / "corpus")
        test_inputs = TrainingInputs(Path(name) / "test")
        reduction = write_training_data(
            catalog,
            parent.embedding,
            corpus_inputs.folder,
            [LINEAR],
            functools.partial(load_labels, catalog, classes=classes),
        )
        write_training_data(
            test.catalog,
            parent.embedding,
            test_inputs.folder,
            [LINEAR],
            functools.partial(load_labels, test.catalog, classes=classes),
            reduction=reduction,
            urls=test.urls,
        )
        teacher = train_teacher(corpus_inputs, len(classes))
        relabel(catalog, corpus_inputs, teacher, list(classes))
        relabel(test.catalog, test_inputs, teacher, list(classes))


def train_teacher(inputs: TrainingInputs, num_classes: int) -> Stack:
    """One linear head on all samples that have a label."""
    data, labels = inputs.data_for(LINEAR), inputs.labels
    stack = Stack(LINEAR, data.channels, num_classes, [0], "cpu")
    labelled = np.flatnonzero(labels >= 0)
    epochs = num_epochs(LINEAR, len(labelled))
    train(stack, LINEAR, data, np.maximum(labels, 0), labelled[None], [0], epochs)
    return stack


def relabel(catalog: Catalog, inputs: TrainingInputs, teacher: Stack, classes: list[str]) -> None:
    """Replace the labels by those that the teacher predicts, and print how many changed."""
    sample_ids = inputs.sample_ids
    batches = predict(teacher, inputs.data_for(LINEAR), 1, torch.arange(len(sample_ids)))
    logits = torch.cat([batch_logits for batch_logits, _ in batches], dim=1)
    new_labels = logits[0].argmax(1).numpy()
    with catalog.writing() as connection:
        connection.execute(
            _UPDATE_LABELS,
            {"sample_ids": sample_ids, "labels": [classes[index] for index in new_labels]},
        )
    changed = (new_labels != inputs.labels).mean()
    print(f"{catalog.path}: {len(sample_ids):,} samples, {changed:.1%} with a new label")


if __name__ == "__main__":
    main()
