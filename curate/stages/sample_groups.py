"""Groups of samples, by label, by cluster or by a column, and which of them a selection starves."""

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord
from curate.catalog.samples import fill_column
from curate.catalog.sql import quote_identifier, quote_literal
from curate.errors import CurateError, OptionError

if TYPE_CHECKING:
    import duckdb

LABEL, CLUSTER = "label", "cluster"
# Numbers with more different values than this are divided into ranges of about the same size.
MAX_VALUES, NUM_RANGES = 50, 10
# A difference beyond chance: so many standard deviations of a Poisson count.
_SIGMAS = 3.0

_NUMBER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE")


class Grouping(NamedTuple):
    """What samples are grouped by: label, cluster or a column's name, and the column itself.

    `clustering` is the one that has the clusters.
    """

    by: str
    column: str
    clustering: str | None = None

    @property
    def name(self) -> str:
        """For names of sets and files: a column may be called anything."""
        words = f"{self.by}-{self.clustering}" if self.clustering else self.by
        return re.sub(r"[^A-Za-z0-9@_.,+=-]", "_", words)


class SampleGroups(NamedTuple):
    """The names of the groups, and the group of each sample, int32 [n]."""

    names: list[str]
    codes: np.ndarray


def choose_grouping(catalog: Catalog, by: str | None, clustering: str | None) -> Grouping:
    """label where there are labels, else cluster, where `by` is not given.

    Clusters are those of `clustering`, or of the newest. Raises OptionError for a column that does
    not exist, and CurateError where there is nothing to group by.
    """
    with catalog.reading() as connection:
        columns = _column_types(connection)
        has_labels = connection.execute(
            "select 1 from samples where label is not null limit 1"
        ).fetchall()
    if clustering is not None and by is None:
        by = CLUSTER
    by = by or (LABEL if has_labels else CLUSTER)
    if clustering is not None and by != CLUSTER:
        raise OptionError(f"--clustering goes with --by cluster, not with --by {by}")
    if by == LABEL and not has_labels:
        raise CurateError("the corpus has no labels: group by cluster or by a column (--by)")
    if by == CLUSTER:
        if clustering is None:
            names = catalog.list_names(ClusteringRecord)
            if not names:
                raise CurateError(
                    "there are neither labels nor clusters to group by: make clusters with "
                    "`curate cluster`, or name a column with --by"
                )
            clustering = names[-1]
        record = catalog.require(ClusteringRecord, clustering)
        return Grouping(CLUSTER, record.clustering, record.clustering)
    if by not in columns:
        available = ", ".join(dict.fromkeys((LABEL, CLUSTER, *columns)))
        raise OptionError(f"--by {by}: no such column; there are: {available}")
    return Grouping(by, by)


def load_groups(catalog: Catalog, grouping: Grouping, sample_ids: np.ndarray) -> SampleGroups:
    """The groups of samples, sorted ids int64 [n]; those without a value are a group too.

    Raises OptionError for a column with about as many values as there are samples.
    """
    table, column = _find_column(grouping)
    with catalog.reading() as connection:
        column_type = _column_types(connection)[grouping.column]
        ((num_values, num_present),) = connection.execute(
            f"select count(distinct {column}), count({column}) from {table}"
        ).fetchall()
        if not num_values:
            return SampleGroups([_missing_name(grouping.by)], np.zeros(len(sample_ids), np.int32))
        if column_type in _NUMBER_TYPES and num_values > MAX_VALUES and grouping.by != CLUSTER:
            return _load_ranges(connection, grouping.by, column, sample_ids)
        if num_values > max(MAX_VALUES, num_present // 2):
            raise OptionError(
                f"--by {grouping.by}: {num_values:,} values of {num_present:,} samples are no "
                "groups; choose a column whose values repeat"
            )
        # An enum turns each value into its index, faster than a join does.
        connection.execute(
            f"create temp type group_values as enum (select distinct {column}::text as value "
            f"from {table} where {column} is not null order by value)"
        )
        rows = connection.execute("select unnest(enum_range(null::group_values))::text").fetchall()
        names = [name for (name,) in rows]
        codes = np.full(len(sample_ids), len(names), np.int32)
        query = (
            f"select sample_id, enum_code({column}::text::group_values) from {table} "
            f"where {column} is not null"
        )
        fill_column(connection, query, sample_ids, codes)
    if (codes == len(names)).any():
        names.append(_missing_name(grouping.by))
    return SampleGroups(names, codes)


def _find_column(grouping: Grouping) -> tuple[str, str]:
    """The table, in SQL, and its column. `sample_scores` joins every scoring and clustering."""
    if grouping.by == LABEL:
        return "samples", "label"
    if grouping.clustering:
        name = quote_literal(grouping.clustering)
        return f"(select * from assignments where clustering = {name})", "cluster_id"
    return "sample_scores", quote_identifier(grouping.column)


def _load_ranges(
    connection: "duckdb.DuckDBPyConnection", by: str, column: str, sample_ids: np.ndarray
) -> SampleGroups:
    """Ranges of a column of numbers, with about as many samples in each."""
    values = np.full(len(sample_ids), np.nan)
    query = f"select sample_id, {column}::double from sample_scores where {column} is not null"
    fill_column(connection, query, sample_ids, values)
    present = values[np.isfinite(values)]
    if not len(present):
        return SampleGroups([_missing_name(by)], np.zeros(len(values), np.int32))
    edges = np.unique(np.quantile(present, np.arange(1, NUM_RANGES) / NUM_RANGES))
    edges = edges[edges > present.min()]
    bounds = [present.min(), *edges, present.max()]
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(bounds)]
    codes = np.searchsorted(edges, values, side="right").astype(np.int32)
    codes[~np.isfinite(values)] = len(names)
    return SampleGroups([*names, _missing_name(by)], codes)


def _column_types(connection: "duckdb.DuckDBPyConnection") -> dict[str, str]:
    rows = connection.execute(
        "select column_name, data_type from duckdb_columns() where table_name = 'sample_scores' "
        "order by column_index"
    ).fetchall()
    return {name: str(data_type) for name, data_type in rows}


def _missing_name(by: str) -> str:
    return f"no {by}"


def are_starved(num_kept: np.ndarray, num_expected: np.ndarray, floor: float) -> np.ndarray:
    """Which groups keep less than `floor` times what is expected, beyond chance: bool [groups].

    Chance is three standard deviations of a Poisson count: √expected. So a group of which fewer
    than ten samples are expected is never starved, even where none is kept.
    """
    expected = np.asarray(num_expected, np.float64)
    is_below = num_kept < floor * expected
    return np.asarray(is_below & (expected - num_kept > _SIGMAS * np.sqrt(expected)))
