"""The candidates of a selection: their ids, groups and scores.

Columns are read in batches into arrays, 20 bytes per sample, and joined here: the ids come sorted,
and a hash join would hold them once more. Selecting then takes about 4 more;
a strategy that computes priorities of its own, 8 besides.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord
from curate.catalog.samples import fetch_ids, fill_column
from curate.catalog.sql import (
    check_is_condition,
    check_reads_only,
    quote_identifier,
    quote_literal,
)
from curate.errors import CurateError

if TYPE_CHECKING:
    import duckdb


class Candidates(NamedTuple):
    """Sorted ids int64 [n]; groups int32 [n], 0 for none; scores float64 [n], NaN for none."""

    sample_ids: np.ndarray
    groups: np.ndarray
    scores: np.ndarray


def load_candidates(
    catalog: Catalog,
    scoring: str | None,
    balance_by: str,
    where: str | None,
    clustering: str | None = None,
    *,
    with_scores: bool = True,
) -> Candidates:
    """The candidates that meet the condition `where`, with scores of `scoring` and their groups.

    Groups are labels or clusters: those of `clustering`, else those that the scoring was made from,
    else the newest. Without scores that array is empty. Raises CurateError for a wrong condition.
    """
    # On a sandboxed read-only connection, because `where` is free text.
    with catalog.reading(sandboxed=True) as connection:
        sample_ids = _load_sample_ids(connection, where)
        scores = np.full(len(sample_ids) if with_scores else 0, np.nan)
        if scoring is not None and with_scores:
            condition = f"scoring = {quote_literal(scoring)} and score is not null"
            query = f"select sample_id, score from scores where {condition}"
            fill_column(connection, query, sample_ids, scores)
        groups = np.zeros(len(sample_ids), np.int32)
        if balance_by == "label":
            _fill_label_groups(connection, sample_ids, groups)
        elif balance_by == "cluster":
            name = quote_literal(clustering or _choose_clustering(connection, scoring))
            query = f"select sample_id, cluster_id + 1 from assignments where clustering = {name}"
            fill_column(connection, query, sample_ids, groups)
    return Candidates(sample_ids, groups, scores)


def count_unscored(catalog: Catalog, scoring: str, where: str | None) -> int:
    """How many samples that meet the condition `where` have no score of `scoring`."""
    condition = f"{quote_identifier(scoring)} is null" + (
        f" and ({where}\n)" if where is not None else ""
    )
    with catalog.reading(sandboxed=True) as connection:
        ((count,),) = connection.execute(
            f"select count(*) from sample_scores where {condition}"
        ).fetchall()
    return int(count)


def check_where(catalog: Catalog, where: str) -> None:
    """CurateError unless the user's text is one condition by itself.

    It is checked alone, before it is joined to ours, so that no bracket in it closes one of ours.
    """
    import duckdb

    with catalog.reading(sandboxed=True) as connection:
        try:
            check_is_condition(connection, where)
        except (duckdb.Error, CurateError) as error:
            raise _invalid_where(where, error) from error


def _load_sample_ids(connection: "duckdb.DuckDBPyConnection", where: str | None) -> np.ndarray:
    import duckdb

    ((count,),) = connection.execute("select count(*) from samples").fetchall()
    query = "select sample_id from samples"
    if where is not None:
        # Whatever the condition is, only samples are returned, and each once.
        query += f" where sample_id in (select sample_id from sample_scores where ({where}\n))"
    try:
        check_reads_only(connection, query)
        return fetch_ids(connection, query, count)
    except (duckdb.Error, CurateError, OSError) as error:
        if where is None:
            raise
        raise _invalid_where(where, error) from error


def _invalid_where(where: str, error: Exception) -> CurateError:
    reason = re.sub(r"^(Unknown error: )?", "", str(error).splitlines()[0])
    return CurateError(
        f"--where {where!r}: {reason}; columns: `curate query 'describe sample_scores'`"
    )


def _fill_label_groups(
    connection: "duckdb.DuckDBPyConnection", sample_ids: np.ndarray, groups: np.ndarray
) -> None:
    # An enum turns each label into its index, faster than a join does.
    connection.execute(
        "create temp type labels as enum "
        "(select distinct label from samples where label is not null order by label)"
    )
    query = "select sample_id, enum_code(label::labels) + 1 from samples where label is not null"
    fill_column(connection, query, sample_ids, groups)


def load_group_names(catalog: Catalog, balance_by: str, groups: list[int]) -> list[str]:
    """What groups of `Candidates.groups` are called in messages."""
    with catalog.reading() as connection:
        labels = connection.execute(
            "select label from (select row_number() over (order by label) as number, label "
            "from (select distinct label from samples where label is not null)) "
            "where number in (select unnest($1)) order by number",
            [groups if balance_by == "label" else []],
        ).fetchall()
    names = [repr(label) for (label,) in labels] or [str(group - 1) for group in groups if group]
    return [f"those without a {balance_by}", *names] if 0 in groups else names


def _choose_clustering(connection: "duckdb.DuckDBPyConnection", scoring: str | None) -> str:
    """The clustering that the scoring was made from, else the newest of the whole corpus.

    One of a selection only where there is no other.
    """
    rows = connection.execute(
        "select clustering from clusterings left join runs using (run_id) "
        "order by (arguments->>'within') is null, clusterings.run_id"
    ).fetchall()
    names = [str(name) for (name,) in rows]
    if not names:
        raise CurateError("the catalog has no clustering yet: make one with `curate cluster`")
    record = sets.find_set(connection, ScoringRecord, scoring) if scoring else None
    if record is not None and record.source in names:
        return record.source
    return names[-1]
