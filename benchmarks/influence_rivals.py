"""How far the influence of the closed form is from the exact change of a margin.

    curate probe --model ridge --test SHARDS
    python benchmarks/influence_rivals.py CATALOG

The margin is the output for the own class less the largest other. `curate score influence_max`
takes the class that is the largest other with every sample trained on; leaving a sample out can
make another class the largest. This looks for it anew for every pair of samples.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from curate.catalog.catalog import Catalog
from curate.catalog.records import ProbeRecord
from curate.formats.probe_outputs import read_outputs, read_test_outputs
from curate.formats.sample_ids import SHARD_FILES
from curate.metrics.influence import influence_of_leave_one_out

_BLOCK_SAMPLES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--probe", default="ridge")
    arguments = parser.parse_args()
    catalog = Catalog(arguments.catalog)
    (part,) = catalog.probe_parts(catalog.require(ProbeRecord, arguments.probe))
    test = read_test_outputs(part)
    labelled = test["labels"] >= 0
    rows, outputs, labels = (test[name][labelled] for name in ("rows", "outputs", "labels"))
    margins, rivals = margins_and_rivals(outputs, labels)
    num_other_rival = num_pairs = 0
    maxima: list[np.ndarray] = []
    for left_out in iterate_blocks(part):
        scored = influence_of_leave_one_out(left_out, rows, outputs, labels)
        directions, residuals = np.split(left_out, [rows.shape[1]], axis=1)
        changes = (directions @ rows.T)[:, :, None] * residuals[:, None]
        margins_without, rivals_without = margins_and_rivals(outputs - changes, labels)
        exact = margins - margins_without
        num_other_rival += int((rivals_without != rivals).sum())
        num_pairs += scored.size
        maxima.append(np.stack([scored.max(axis=1), exact.max(axis=1)]))
    correlation = spearmanr(*np.concatenate(maxima, axis=1)).statistic
    print(f"{num_other_rival / num_pairs:.2%} of {num_pairs:,} pairs have another largest class")
    print(f"influence_max: rank correlation {correlation:.3f} with that of the exact change")


def iterate_blocks(part: Path) -> Iterator[np.ndarray]:
    """What leaving out each sample changes, some samples at a time: float32 [n, d + classes]."""
    for file in sorted(part.glob(SHARD_FILES)):
        left_out = read_outputs(file, ["leave_one_out"])[1]["leave_one_out"]
        yield from np.array_split(left_out, range(_BLOCK_SAMPLES, len(left_out), _BLOCK_SAMPLES))


def margins_and_rivals(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output for the own class less the largest other, and the class of that.

    [..., t, classes], [t] -> [..., t], [..., t].
    """
    is_own = labels[:, None] == np.arange(outputs.shape[-1])
    own_outputs = np.where(is_own, outputs, -np.inf).max(axis=-1)
    other_outputs = np.where(is_own, -np.inf, outputs)
    return own_outputs - other_outputs.max(axis=-1), other_outputs.argmax(axis=-1)


if __name__ == "__main__":
    main()
