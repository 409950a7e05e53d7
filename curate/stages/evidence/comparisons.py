"""Comparisons of selections with the whole corpus and with random samples, from the training runs.

Each run has kept which test samples it was right on, so that the interval counts both kinds of
chance: that of the seeds, and that of the test samples.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.catalog import sets
from curate.catalog.records import ComparisonRecord
from curate.stages.evidence.intervals import Difference, paired_difference

if TYPE_CHECKING:
    import duckdb

FULL, PRUNED, RANDOM, WEIGHTED = "full", "pruned", "random", "weighted"
# The baseline of a selection with weights: the same selection without them.
UNWEIGHTED = "unweighted"
# That of a selection with repeats: the selection that is alike but for these.
UNREPEATED = "unrepeated"
# What is compared: the name of the baseline, its arm, and the arm that is compared with it.
_PAIRS = (
    (FULL, FULL, PRUNED),
    (RANDOM, RANDOM, PRUNED),
    (UNWEIGHTED, PRUNED, WEIGHTED),
    (UNREPEATED, UNREPEATED, PRUNED),
)
_POINTS = 100  # percent
# Selections that were drawn with the same options, but for these.
_ALIKE_WITHOUT_REPEATS = """
with drawn as (
    select selection, repeats, run_id,
        json_merge_patch(arguments, '{"repeats": null, "weights": null}')::text as options
    from selections join runs using (run_id)
    where stage = 'select'
)
select once.selection
from drawn as once join drawn as repeated using (options)
where repeated.selection = ? and repeated.repeats is not null and once.repeats is null
order by once.run_id
"""


def pack_answers(is_correct: np.ndarray) -> bytes:
    """Which test samples a run was right on, bool [n], eight per byte."""
    return np.packbits(is_correct).tobytes()


def unpack_answers(packed: bytes, num_test: int) -> np.ndarray:
    """The answers of `pack_answers`, bool [num_test]."""
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=num_test).astype(bool)


class _Runs(NamedTuple):
    """The runs of one arm on one test set: which seeds, and their answers, bool [seeds, n]."""

    seeds: list[int]
    answers: np.ndarray


def refresh_comparisons(connection: "duckdb.DuckDBPyConnection", validation: str) -> None:
    """In an open transaction: compare all arms of a validation anew, seed by seed.

    Runs of earlier versions, which kept no answers, are left out; so are pairs with fewer than two
    seeds in common.
    """
    connection.execute("delete from comparisons where validation = ?", [validation])
    tests = connection.execute(
        "select distinct test, selection from training_runs "
        "where validation = ? and arm = 'pruned' order by all",
        [validation],
    ).fetchall()
    for test, selection in tests:
        arms = {
            arm: _load_runs(connection, validation, test, arm, None if arm == FULL else selection)
            for arm in (FULL, PRUNED, RANDOM, WEIGHTED)
        }
        arms[UNREPEATED] = _find_unrepeated(connection, validation, test, selection)
        for baseline, baseline_arm, arm in _PAIRS:
            seeds = sorted(set(arms[baseline_arm].seeds) & set(arms[arm].seeds))
            if len(seeds) < 2:
                continue
            a, b = (
                runs.answers[[runs.seeds.index(seed) for seed in seeds]]
                for runs in (arms[baseline_arm], arms[arm])
            )
            record = make_record(validation, selection, baseline, test, a, b)
            sets.insert_row(connection, "comparisons", record._asdict())


def _find_unrepeated(
    connection: "duckdb.DuckDBPyConnection", validation: str, test: str, selection: str
) -> _Runs:
    """The runs of the selection that is alike but has no repeats, where it was validated too."""
    rows = connection.execute(_ALIKE_WITHOUT_REPEATS, [selection]).fetchall()
    runs = [_load_runs(connection, validation, test, PRUNED, name) for (name,) in rows]
    return next((one for one in runs if one.seeds), _Runs([], np.empty((0, 0))))


def _load_runs(
    connection: "duckdb.DuckDBPyConnection",
    validation: str,
    test: str,
    arm: str,
    selection: str | None,
) -> _Runs:
    rows = connection.execute(
        "select seed, num_test, correct from training_runs where validation = ? and test = ? "
        "and arm = ? and selection is not distinct from ? and correct is not null order by seed",
        [validation, test, arm, selection],
    ).fetchall()
    answers = [unpack_answers(packed, num_test) for _, num_test, packed in rows]
    return _Runs([seed for seed, _, _ in rows], np.stack(answers) if answers else np.empty((0, 0)))


def make_record(
    validation: str, selection: str, baseline: str, test: str, a: np.ndarray, b: np.ndarray
) -> ComparisonRecord:
    difference = paired_difference(a, b)
    return ComparisonRecord(
        validation=validation,
        selection=selection,
        baseline=baseline,
        test=test,
        seeds=difference.seeds,
        num_test=difference.num_test,
        accuracy=_POINTS * float(b.mean()),
        baseline_accuracy=_POINTS * float(a.mean()),
        difference=_POINTS * difference.mean,
        half_width=_POINTS * difference.half_width(),
        variance=_POINTS**2 * difference.variance,
        freedom=difference.freedom,
        seed_variance=_POINTS**2 * difference.seed_variance,
        sample_variance=_POINTS**2 * difference.sample_variance,
        residual_variance=_POINTS**2 * difference.residual_variance,
    )


def to_difference(record: ComparisonRecord) -> Difference:
    """The difference that a record holds, in points."""
    return Difference(
        mean=record.difference,
        variance=record.variance,
        freedom=record.freedom,
        seeds=record.seeds,
        num_test=record.num_test,
        seed_variance=record.seed_variance,
        sample_variance=record.sample_variance,
        residual_variance=record.residual_variance,
    )


def load_comparisons(
    connection: "duckdb.DuckDBPyConnection", validation: str | None = None
) -> list[ComparisonRecord]:
    """The comparisons of a validation, or of all: the largest selections first."""
    rows = connection.execute(
        "select comparisons.* from comparisons "
        "left join (select validation, selection, any_value(keep) as keep from training_runs "
        "where arm = 'pruned' group by all) as kept using (validation, selection) "
        "where $1::text is null or validation = $1 "
        "order by validation, keep desc, selection, test, baseline",
        [validation],
    ).fetchall()
    return [ComparisonRecord(*row) for row in rows]
