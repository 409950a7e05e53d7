"""The smallest selection that is shown to lose nothing beyond a margin: `select --keep auto`.

Many comparisons would favour the lucky one. Selections that differ in nothing but the fraction kept
are a chain, tested from the largest fraction down, each at the same level, until one is not shown:
tests in a fixed order need no correction (Maurer, Hothorn & Lehmacher 1995). The chains share the
chance of an error, which is divided by their number (Bonferroni).
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ComparisonRecord,
    SelectionRecord,
    ValidationRecord,
)
from curate.errors import CurateError
from curate.stages.evidence.comparisons import FULL, load_comparisons, to_difference
from curate.stages.evidence.intervals import LEVEL
from curate.stages.evidence.verdicts import BETTER, NO_LOSS, WORSE, decide, describe
from curate.stages.staleness import find_stale

if TYPE_CHECKING:
    import duckdb

# What a chain's selections have in common.
_CHAIN_FIELDS = (
    "repeats",
    "scoring",
    "strategy",
    "strategy_options",
    "scope",
    "balance",
    "balance_by",
    "balance_base",
    "where_sql",
    "seed",
    "skip_hardest",
)


@dataclass(frozen=True)
class Candidate:
    """A validated selection: how it compares with everything on each test set."""

    validation: str
    selection: str
    keep: float
    num_samples: int
    tolerance: float  # the validation's margin, in points
    chain: tuple[object, ...]
    comparisons: list[ComparisonRecord]


@dataclass(frozen=True)
class Choice:
    """The selection to take, or the one nearest to it, with the evidence in words."""

    candidate: Candidate
    is_shown: bool
    margin: float
    evidence: str
    num_chains: int
    level: float


def find_smallest(
    catalog: Catalog,
    margin: float | None = None,
    *,
    within: str | None = None,
    scoring: str | None = None,
    strategy: str | None = None,
    balance: float | None = None,
) -> Choice:
    """The smallest validated selection without a loss beyond `margin` points, or the nearest to it.

    `margin` is the validation's own by default. Only selections of the given scoring, strategy and
    balance count. What is out of date is no evidence. Raises CurateError where none is left.
    """
    filters = {"scoring": scoring, "strategy": strategy, "balance": balance}
    stale = find_stale(catalog, by_selections=False)
    candidates, reasons = [], []
    with catalog.reading() as connection:
        for validation in _load_validations(connection, within):
            reason = stale.get(("validation", validation.validation))
            corpus = within and sets.find_set(connection, SelectionRecord, within)
            if corpus and corpus.run_id > validation.run_id:
                reason = f"before the last change of '{within}'"
            if _count_runs(connection, validation.validation) < validation.num_training_runs:
                # Its largest fraction may be what is missing.
                reason = "in part only: it was interrupted, or is under way"
            if reason:
                reasons.append(f"the validation '{validation.validation}' was made {reason}")
                continue
            for record, trained_fingerprint in _load_selections(connection, validation.validation):
                reason = stale.get(("selection", record.selection))
                if record.fingerprint != trained_fingerprint:
                    reason = "anew since its validation"
                if reason:
                    reasons.append(f"'{record.selection}' was made {reason}")
                elif all(value in (None, getattr(record, name)) for name, value in filters.items()):
                    candidates.append(_make_candidate(connection, validation, record))
        candidates = [candidate for candidate in candidates if candidate.comparisons]
        if candidates:
            return choose(connection, candidates, margin)
    raise CurateError(_explain_absence(within, filters, reasons))


def _load_validations(
    connection: "duckdb.DuckDBPyConnection", within: str | None
) -> list[ValidationRecord]:
    """Validations of this corpus; fine-tuning on another task says little about its own."""
    rows = connection.execute(
        "select validations.* from validations "
        "where (len(transfer) = 0 or task = 'self-supervised') "
        "and (setting->>'within') is not distinct from ?::text "
        "order by run_id",
        [within],
    ).fetchall()
    return [ValidationRecord.from_row(row) for row in rows]


def _count_runs(connection: "duckdb.DuckDBPyConnection", validation: str) -> int:
    ((count,),) = connection.execute(
        "select count(distinct (arm, selection, seed)) from training_runs where validation = ?",
        [validation],
    ).fetchall()
    return int(count)


def _load_selections(
    connection: "duckdb.DuckDBPyConnection", validation: str
) -> list[tuple[SelectionRecord, str | None]]:
    """The selections of a validation, each with the fingerprint that it had when it trained."""
    rows = connection.execute(
        "select selections.*, trained.fingerprint from selections join ("
        "select distinct selection, selection_fingerprint as fingerprint from training_runs "
        "where validation = ? and arm = 'pruned') as trained using (selection) "
        "order by selections.run_id",
        [validation],
    ).fetchall()
    return [(SelectionRecord.from_row(row[:-1]), row[-1]) for row in rows]


def _make_candidate(
    connection: "duckdb.DuckDBPyConnection", validation: ValidationRecord, record: SelectionRecord
) -> Candidate:
    comparisons = [
        comparison
        for comparison in load_comparisons(connection, validation.validation)
        if comparison.selection == record.selection and comparison.baseline == FULL
    ]
    chain = (validation.validation, *(getattr(record, name) for name in _CHAIN_FIELDS))
    return Candidate(
        validation=validation.validation,
        selection=record.selection,
        keep=record.keep,
        num_samples=record.num_samples,
        tolerance=validation.tolerance,
        chain=chain,
        comparisons=comparisons,
    )


def choose(
    connection: "duckdb.DuckDBPyConnection",
    candidates: list[Candidate],
    margin: float | None = None,
) -> Choice:
    """Test each chain from its largest fraction down, and take the smallest that is shown.

    A selection must be shown on every test set of its validation, and be worse in no other
    validation: what one shows to lose, no other makes up for.
    """
    chains: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in candidates:
        chains.setdefault(candidate.chain, []).append(candidate)
    level = 1 - (1 - LEVEL) / len(chains)

    def words(candidate: Candidate) -> set[str]:
        chosen_margin = candidate.tolerance if margin is None else margin
        return {
            decide(connection, to_difference(comparison), chosen_margin, level)
            for comparison in candidate.comparisons
        }

    worse = {candidate.selection for candidate in candidates if WORSE in words(candidate)}
    shown: list[Candidate] = []
    for chain in chains.values():
        chain.sort(key=lambda candidate: -candidate.keep)
        shown += itertools.takewhile(lambda candidate: words(candidate) <= {BETTER, NO_LOSS}, chain)
    shown = [candidate for candidate in shown if candidate.selection not in worse]
    if shown:
        best = min(shown, key=lambda candidate: candidate.num_samples)
    else:  # the one whose interval comes nearest, among the first that were not shown
        best = max(
            (chain[0] for chain in chains.values()),
            key=lambda candidate: min(
                _lower_bound(comparison, level) for comparison in candidate.comparisons
            ),
        )
    comparison = min(best.comparisons, key=lambda comparison: _lower_bound(comparison, level))
    chosen_margin = best.tolerance if margin is None else margin
    difference = to_difference(comparison)
    word = decide(connection, difference, chosen_margin, level)
    return Choice(
        best,
        bool(shown),
        chosen_margin,
        describe(difference, word, chosen_margin, level),
        len(chains),
        level,
    )


def _lower_bound(comparison: ComparisonRecord, level: float) -> float:
    return comparison.difference - to_difference(comparison).half_width(level)


def _explain_absence(within: str | None, filters: dict[str, Any], reasons: list[str]) -> str:
    option = f" --within {within}" if within else ""
    command = f"curate validate{option} --keep 0.8 --keep 0.5"
    filter_text = " ".join(
        f"--{name} {value}" for name, value in filters.items() if value is not None
    )
    if filter_text and not reasons:
        return f"no selection with {filter_text} was validated yet: run `{command} {filter_text}`"
    if reasons:
        return f"no evidence that is up to date: {reasons[-1]}; run `{command}` again"
    return f"no selection was validated yet: run `{command} --strategy hardest --strategy easiest`"
