"""What a selection chooses from: the candidates of a catalog, their groups and their scores, as columns of numbers.

Read in batches, so that memory holds 20 bytes a sample; joined here, because ids come sorted, and a hash join would hold
them once more.
"""

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate import sets
from curate.catalog import Catalog
from curate.errors import CurateError

if TYPE_CHECKING:
    import duckdb

_BATCH = 1 << 20


class Candidates(NamedTuple):
    """Sorted ids int64 [n]; groups int32 [n], 0 for what has no label or no cluster; scores float64 [n], NaN for none."""

    sample_ids: np.ndarray
    groups: np.ndarray
    scores: np.ndarray


def candidates(catalog: Catalog, settings: dict[str, Any]) -> Candidates:
    """`settings` are the columns of `selections`: scoring, balance_by, where_sql. Raises CurateError for a wrong where_sql."""
    # On a guarded read-only connection, because `where` is free text.
    with catalog.reading(guarded=True) as connection:
        ids = _ids(connection, settings["where_sql"])
        scores = np.full(len(ids), np.nan)
        if settings["scoring"] is not None:
            chosen = f"scoring = {sets.literal(settings['scoring'])} and score is not null"
            _fill(connection, ids, scores, f"select sample_id, score from scores where {chosen}")
        groups = np.zeros(len(ids), np.int32)
        if settings["balance_by"] == "label":
            # A type of its own turns each label into its place among the labels, faster than a join does.
            connection.execute("create temp type labels as enum (select distinct label from samples where label is not null "
                               "order by label)")  # fmt: skip
            _fill(
                connection, ids, groups, "select sample_id, enum_code(label::labels) + 1 from samples where label is not null"
            )
        elif settings["balance_by"] == "cluster":
            clustering = sets.literal(_clustering(connection, settings["scoring"]))
            _fill(connection, ids, groups, f"select sample_id, cluster_id + 1 from assignments where clustering = {clustering}")
    return Candidates(ids, groups, scores)


def _ids(connection: "duckdb.DuckDBPyConnection", where: str | None) -> np.ndarray:
    import duckdb

    ((count,),) = connection.execute("select count(*) from samples").fetchall()
    ids, filled = np.empty(count, np.int64), 0
    # Around the free text, so that whatever it says, only samples come, and each once.
    inside = f" where sample_id in (select sample_id from sample_scores where ({where}\n))" if where else ""
    text = f"select sample_id from samples{inside}"
    try:
        if where:
            _check_condition(connection, where)
        sets.check_reads_only(connection, text)
        for batch in connection.sql(text).to_arrow_reader(_BATCH):
            ids[filled : filled + len(batch)] = batch.column(0).to_numpy()
            filled += len(batch)
    except (duckdb.Error, CurateError, OSError) as error:
        if where is None:
            raise
        reason = re.sub(r"^(Unknown error: )?", "", str(error).splitlines()[0])
        raise CurateError(f"--where {where!r}: {reason}; columns: `curate query 'describe sample_scores'`") from error
    ids = ids[:filled]
    if not (ids[1:] > ids[:-1]).all():
        ids.sort()
    return ids


def _check_condition(connection: "duckdb.DuckDBPyConnection", where: str) -> None:
    """CurateError unless the text is one expression, by DuckDB's own parser: no brackets that close ours."""
    ((found,),) = connection.execute("select json_serialize_sql(?)", [f"select ({where}\n)"]).fetchall()
    tree = json.loads(found)
    if tree["error"]:
        raise CurateError(tree["error_message"])
    (statement,) = tree["statements"]
    node = statement["node"]
    alone = node["type"] == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY" and not node["modifiers"]
    if not alone or len(node["select_list"]) != 1:
        raise CurateError("it is no condition")


def _fill(connection: "duckdb.DuckDBPyConnection", ids: np.ndarray, column: np.ndarray, text: str) -> None:
    """Put the values of a query for (sample_id, value) into the column, each beside its id; other ids are passed over."""
    place = 0  # where the next batch would begin, if it held just the ids that follow
    for batch in connection.sql(text).to_arrow_reader(_BATCH):
        found, values = (part.to_numpy(zero_copy_only=False) for part in batch.columns)
        here: Any = slice(place, place + len(found))
        if not np.array_equal(ids[here], found):
            here = np.searchsorted(ids, found)
            known = here < len(ids)
            known[known] = ids[here[known]] == found[known]
            here, values = here[known], values[known]
        column[here] = values
        place += len(found)


def _clustering(connection: "duckdb.DuckDBPyConnection", scoring: str | None) -> str:
    """The clustering that the scoring was made from, else the newest."""
    names = sets.names(connection, "clustering")
    source = (sets.head(connection, "scoring", scoring) or {}).get("source") if scoring else None
    if not names:
        raise CurateError("the catalog has no clustering yet: make one with `curate cluster`")
    return source if source in names else names[-1]
