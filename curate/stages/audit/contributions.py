"""How even contributions are before and after pruning: of scorings of the metric contribution."""

from typing import NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import AuditContributionRecord, ScoringRecord
from curate.catalog.samples import fill_column
from curate.catalog.sql import quote_literal
from curate.stages.audit.measures import Evenness, contribution_curve, measure_evenness

METRIC = "contribution"
ALL, KEPT, RANDOM, ALONE = "all", "kept", "random", "kept alone"


class ContributionScorings(NamedTuple):
    """By models of everything, and by models that were trained on the selection alone."""

    of_all: ScoringRecord | None
    alone: ScoringRecord | None

    @property
    def records(self) -> list[ScoringRecord]:
        return [record for record in self if record is not None]


class Contributions(NamedTuple):
    """What was found of each population, and its curve, float64 [101]; at random, of one draw."""

    records: list[AuditContributionRecord]
    curves: dict[str, np.ndarray]


def find_scorings(catalog: Catalog, selection: str) -> ContributionScorings:
    """The newest scorings of the metric, of everything and within the selection."""
    newest: dict[object, ScoringRecord] = {}
    for name in catalog.list_names(ScoringRecord):
        record = catalog.require(ScoringRecord, name)
        if record.metric == METRIC:
            newest[catalog.run_arguments(record.run_id).get("within")] = record
    return ContributionScorings(newest.get(None), newest.get(selection))


def measure_contributions(
    catalog: Catalog,
    audit: str,
    scorings: ContributionScorings,
    sample_ids: np.ndarray,
    is_kept: np.ndarray,
    random_draws: list[np.ndarray],
) -> Contributions:
    """Of all candidates, the kept and the random ones, and of the kept ones when trained alone.

    Sorted ids int64 [n]; `is_kept` and each draw bool [n].
    """
    records: list[AuditContributionRecord] = []
    curves: dict[str, np.ndarray] = {}

    def add(population: str, scoring: ScoringRecord, subsets: list[np.ndarray]) -> None:
        measured = [evenness for evenness in map(measure_evenness, subsets) if evenness is not None]
        if not measured:
            return
        means = [float(np.mean(values)) for values in zip(*measured, strict=True)]
        mean_evenness = Evenness(round(means[0]), *means[1:])
        records.append(AuditContributionRecord(audit, population, scoring.scoring, *mean_evenness))
        curves[population] = contribution_curve(subsets[0])

    if scorings.of_all:
        scores = _load_scores(catalog, scorings.of_all, sample_ids)
        add(ALL, scorings.of_all, [scores])
        add(KEPT, scorings.of_all, [scores[is_kept]])
        add(RANDOM, scorings.of_all, [scores[is_drawn] for is_drawn in random_draws])
    if scorings.alone:
        scores = _load_scores(catalog, scorings.alone, sample_ids)
        add(ALONE, scorings.alone, [scores[is_kept]])
    return Contributions(records, curves)


def _load_scores(catalog: Catalog, scoring: ScoringRecord, sample_ids: np.ndarray) -> np.ndarray:
    scores = np.full(len(sample_ids), np.nan)
    with catalog.reading() as connection:
        condition = f"scoring = {quote_literal(scoring.scoring)} and score is not null"
        query = f"select sample_id, score from scores where {condition}"
        fill_column(connection, query, sample_ids, scores)
    return scores
