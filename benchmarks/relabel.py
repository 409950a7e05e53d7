"""Make a catalog's task realisable: a linear teacher, trained on the true labels, gives every sample its label anew.

    curate embed 'cifar10-train-*.tar' --encoder efficientnet_lite0@128 -c realisable
    python benchmarks/relabel.py realisable 'cifar10-test-*.tar'
    curate run scaling -c realisable --from select --set validate.model=linear --set fit.model=linear

Then a linear model can be right on every sample, as in the theory (docs/theory.md): no floor hides what pruning does.
Only the catalog's labels change, and those of its test shards; the shards do not.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from curate import corpus, models
from curate.catalog import Catalog
from curate.engine import training
from curate.engine.fitting import Inputs
from curate.stages import material


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("catalog", type=Path)
    parser.add_argument("test", nargs="+", help="test shards")
    options = parser.parse_args()
    catalog = Catalog(options.catalog)
    embedding = catalog.require("embedding", None)
    test, urls = material.embed_beside(catalog, embedding, options.test)
    classes, linear = corpus.classes(catalog), models.make("linear")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reduction = material.prepare(catalog, embedding["embedding"], folder / "corpus", [linear], classes)
        material.prepare(test, embedding["embedding"], folder / "test", [linear], classes, reduction, urls)
        teacher = train(linear, Inputs(folder / "corpus"), len(classes))
        for target, inputs in ((catalog, Inputs(folder / "corpus")), (test, Inputs(folder / "test"))):
            relabel(target, inputs, linear, teacher, list(classes))


def train(linear: models.Model, inputs: Inputs, classes: int) -> training.Stack:
    """One linear head on all samples that have a label."""
    data, labels = inputs.data(linear), inputs.array("labels")
    stack = training.Stack(linear, data.channels, classes, [0], "cpu")
    chosen = np.flatnonzero(labels >= 0)
    training.train(stack, linear, data, np.maximum(labels, 0), chosen[None], [0], models.epochs(linear, len(chosen)))
    return stack


def relabel(catalog: Catalog, inputs: Inputs, linear: models.Model, teacher: training.Stack, classes: list[str]) -> None:
    """Put the teacher's labels in the place of the samples' own, and say how many changed."""
    ids, old = inputs.array("ids"), inputs.array("labels")
    logits = torch.cat([one for one, _ in training.predict(teacher, inputs.data(linear), 1, torch.arange(len(ids)))], dim=1)
    new = logits[0].argmax(1).numpy()
    with catalog.writing() as connection:
        connection.execute(
            "update samples set label = taught.label "
            "from (select unnest($ids) as sample_id, unnest($labels) as label) as taught "
            "where samples.sample_id = taught.sample_id",
            {"ids": ids, "labels": [classes[code] for code in new]},
        )
    print(f"{catalog.path}: {len(ids):,} samples, {(new != old).mean():.1%} with another label than their own")


if __name__ == "__main__":
    main()
