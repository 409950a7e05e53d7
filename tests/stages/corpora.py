"""Validations within corpora of several sizes, whose errors follow laws that a test chooses."""

from collections.abc import Callable
from typing import Any

import numpy as np
from conftest import insert_validation
from duckdb import DuckDBPyConnection

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord, SelectionRecord

SIZES = (500, 2000, 10_000, 50_000)
CLASSES = ("cat", "dog", "ship")


def add_validations(
    catalog: Catalog,
    random: Callable[[float], float],
    kinds: dict[tuple[str, float], Callable[[float], float]],
    *,
    sizes: tuple[int, ...] = SIZES,
    metrics: tuple[str, ...] = ("el2n",),
    seeds: int = 4,
    noise: float = 0.002,
    **columns: Any,
) -> None:
    """Laws are from a number of training samples to an error; `kinds` are by strategy and keep.

    Each run's error has relative noise. `columns` are those of the validations.
    """
    generator = np.random.default_rng(0)
    model = columns.get("model", "mlp")
    with catalog.writing() as connection:
        for metric in metrics:
            sets.replace_set(connection, make_scoring(metric))
        for size in sizes:
            validation = f"{model}-{size}"
            insert_validation(
                connection, validation, seeds=seeds, num_samples=size, **{"epochs": 10, **columns}
            )

            def insert(arm: str, selection: str | None, keep: float, law: Any) -> None:
                num_samples = round(keep * size)  # noqa: B023 - called in this iteration only
                errors = law(num_samples) * (1 + noise * generator.standard_normal(seeds))
                insert_runs(connection, validation, arm, selection, keep, num_samples, errors)  # noqa: B023

            insert("full", None, 1.0, random)
            for metric in metrics:
                for (strategy, keep), law in kinds.items():
                    selection = f"{metric}-{strategy}-{keep:g}-{size}"
                    record = make_selection(selection, metric, strategy, keep, size)
                    sets.replace_set(connection, record)
                    insert("pruned", selection, keep, law)
                    insert("random", selection, keep, random)


def make_scoring(name: str) -> ScoringRecord:
    return ScoringRecord(
        scoring=name,
        metric=name,
        source=None,
        arguments="{}",
        num_samples=0,
        num_null=0,
        reliability=None,
        fingerprint="",
        run_id=0,
    )


def make_selection(
    name: str, scoring: str, strategy: str, keep: float, size: int
) -> SelectionRecord:
    return SelectionRecord(
        selection=name,
        scoring=scoring,
        strategy=strategy,
        keep=keep,
        scope="global",
        balance=0.5,
        balance_by="label",
        balance_base="proportional",
        where_sql=None,
        seed=0,
        skip_hardest=0.0,
        num_candidates=size,
        num_samples=round(keep * size),
        fingerprint="",
        run_id=0,
    )


def insert_runs(
    connection: DuckDBPyConnection,
    validation: str,
    arm: str,
    selection: str | None,
    keep: float,
    num_samples: int,
    errors: np.ndarray,
) -> None:
    """A training run per seed; every class is as hard as the others, up to a point."""
    connection.execute(
        "insert into training_runs (validation, arm, selection, keep, seed, num_samples, epochs, "
        "accuracy, loss, seconds) "
        "select $1, $2, $3, $4, unnest(range(len($6))), $5, epochs, unnest($6), 0, 0 "
        "from validations where validation = $1",
        [validation, arm, selection, keep, num_samples, (1 - errors).tolist()],
    )
    connection.execute(
        "insert into class_accuracies "
        "(validation, arm, selection, seed, label, num_test, accuracy) "
        "select validation, arm, selection, seed, label, 10, accuracy + 0.01 * (shift - 2) "
        "from training_runs cross join (select unnest($4) as label, unnest([1, 2, 3]) as shift) "
        "where validation = $1 and arm = $2 and selection is not distinct from $3",
        [validation, arm, selection, list(CLASSES)],
    )
