"""What drawing a selection again has changed: which samples came, which left, and why."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.catalog.records import SelectionRecord
from curate.catalog.samples import are_in_runs
from curate.formats.sample_ids import shard_of
from curate.stages.select.candidates import Candidates

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Why a sample came or left, as `membership_changes` stores it, and as it is said of those that came
# and of those that left.
REASONS = {
    "new": ("new samples", ""),
    "shard": ("", "with their shards"),
    "candidate": ("", "no candidates any more"),
    "threshold": ("as the threshold fell", "as the threshold rose"),
    "quota": ("as the quota of their group rose", "as the quota of their group fell"),
    "strategy": ("as the strategy chose", "as the strategy chose"),
    "scores": ("by other scores or options", "by other scores or options"),
}
_REASON_NAMES = tuple(REASONS)
_NEW, _SHARD, _CANDIDATE, _THRESHOLD, _QUOTA, _STRATEGY, _SCORES = range(len(_REASON_NAMES))

# The columns of a selection that say which samples are the first.
_ORDER_COLUMNS = ("scoring", "strategy", "skip_hardest", "seed")


class MembershipChanges(NamedTuple):
    """The samples that came or left: ids int64 [n], bool [n], and an index of REASONS, int8 [n]."""

    sample_ids: np.ndarray
    has_come: np.ndarray
    reasons: np.ndarray

    @property
    def num_came(self) -> int:
        return int(self.has_come.sum())

    @property
    def num_left(self) -> int:
        return len(self.sample_ids) - self.num_came

    def describe(self) -> str:
        """For messages: 12 came (10 new samples, 2 as the threshold fell), 3 left (…)."""
        came = self._describe(self.has_come, 0)
        left = self._describe(~self.has_come, 1)
        return f"{self.num_came:,} came{came}, {self.num_left:,} left{left}"

    def _describe(self, is_described: np.ndarray, column: int) -> str:
        counts = np.bincount(self.reasons[is_described], minlength=len(_REASON_NAMES))
        words = [
            f"{count:,} {REASONS[name][column]}"
            for name, count in zip(_REASON_NAMES, counts.tolist(), strict=True)
            if count
        ]
        return f" ({', '.join(words)})" if words else ""


def find_changes(
    previous: SelectionRecord,
    previous_ids: np.ndarray,
    record: SelectionRecord,
    member_ids: np.ndarray,
    candidates: Candidates,
    priorities: np.ndarray | None,
    *,
    has_same_scores: bool,
) -> MembershipChanges:
    """Compare the sorted members before and after, int64 each; priorities float64 [candidates].

    They are None where a strategy chooses the whole set for itself.

    A group keeps its highest priorities: those above its own bound, which is the lower one of its
    quota's and of the threshold that all groups share. Where the bound is the threshold, that is
    the reason; else the quota. `has_same_scores` says that the samples that were there before have
    the scores that they had.
    """
    came_ids = np.setdiff1d(member_ids, previous_ids, assume_unique=True)
    left_ids = np.setdiff1d(previous_ids, member_ids, assume_unique=True)
    is_same_order = has_same_scores and all(
        getattr(previous, name) == getattr(record, name) for name in _ORDER_COLUMNS
    )
    usual = _STRATEGY if priorities is None else _SCORES
    came_reasons = np.full(len(came_ids), usual, np.int8)
    left_reasons = np.full(len(left_ids), usual, np.int8)
    if is_same_order and priorities is not None:
        for ids, reasons, bounding_ids in (
            (came_ids, came_reasons, member_ids),
            (left_ids, left_reasons, previous_ids),
        ):
            has_quota = _find_groups_bound_by_quota(candidates, priorities, bounding_ids)
            rows, is_candidate = _find_rows(candidates, ids)
            is_quota = np.zeros(len(ids), bool)
            is_quota[is_candidate] = has_quota[candidates.groups[rows]]
            reasons[:] = np.where(is_quota, _QUOTA, _THRESHOLD)
    _, is_candidate = _find_rows(candidates, left_ids)
    left_reasons[~is_candidate] = _CANDIDATE
    left_reasons[~_are_known(left_ids, record.known_shards)] = _SHARD
    came_reasons[~_are_known(came_ids, previous.known_shards)] = _NEW
    return MembershipChanges(
        np.concatenate([came_ids, left_ids]),
        np.repeat([True, False], [len(came_ids), len(left_ids)]),
        np.concatenate([came_reasons, left_reasons]),
    )


def _find_rows(candidates: Candidates, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of those ids that are candidates, and which ids these are: int64 [m], bool [n]."""
    rows = np.searchsorted(candidates.sample_ids, sample_ids)
    is_candidate = rows < len(candidates.sample_ids)
    is_candidate[is_candidate] = (
        candidates.sample_ids[rows[is_candidate]] == sample_ids[is_candidate]
    )
    return rows[is_candidate], is_candidate


def _find_groups_bound_by_quota(
    candidates: Candidates, priorities: np.ndarray, member_ids: np.ndarray
) -> np.ndarray:
    """Which groups keep samples below the threshold of all, bool [groups].

    The threshold is the highest of the groups' least priorities that are kept.
    """
    rows, _ = _find_rows(candidates, member_ids)
    rows = rows[~np.isnan(priorities[rows])]
    num_groups = int(candidates.groups.max(initial=0)) + 1
    least = np.full(num_groups, np.inf)
    np.minimum.at(least, candidates.groups[rows], priorities[rows])
    threshold = least[np.isfinite(least)].max(initial=-np.inf)
    return np.asarray(least < threshold)


def _are_known(sample_ids: np.ndarray, known_shards: list[int] | None) -> np.ndarray:
    """Which samples are of the shards that a selection knows: [n] -> bool [n].

    Selections of before schema 9 do not say which they know: then all are.
    """
    if known_shards is None:
        return np.ones(len(sample_ids), bool)
    return are_in_runs(shard_of(sample_ids), known_shards)


def store_changes(
    connection: "DuckDBPyConnection", record: SelectionRecord, changes: MembershipChanges
) -> None:
    """In an open transaction: replace what is stored of the selection's last change."""
    import pyarrow as pa

    connection.execute("delete from membership_changes where selection = ?", [record.selection])
    table = {
        "sample_id": changes.sample_ids,
        "has_come": changes.has_come,
        "reason": pa.array(np.array(_REASON_NAMES)[changes.reasons], pa.string()),
    }
    connection.register("changes", pa.table(table))
    connection.execute(
        "insert into membership_changes (selection, sample_id, has_come, reason) "
        "select ?, sample_id, has_come, reason from changes order by sample_id",
        [record.selection],
    )
