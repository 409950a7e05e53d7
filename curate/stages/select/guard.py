"""The warnings of a selection that loses all, or nearly all, of a class or a cluster."""

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, SelectionRecord
from curate.formats.sample_ids import are_members
from curate.formatting import count_of
from curate.progress import log
from curate.stages.sample_groups import (
    CLUSTER,
    LABEL,
    SampleGroups,
    are_starved,
    choose_grouping,
    load_groups,
)
from curate.stages.select.candidates import Candidates, load_group_names
from curate.stages.select.quotas import count_groups
from curate.stages.select.strategy_inputs import chooses_for_itself

# A group is nearly lost where less than LEAST_SHARE of it is kept, and, beyond chance, less than
# half of what an equal cut would leave: at --keep 0.1 every group loses 90%.
LEAST_SHARE, LEAST_OF_EQUAL = 0.1, 0.5
_MAX_NAMES_SHOWN = 5
_WORDS = {LABEL: ("class", "classes"), CLUSTER: ("cluster", "clusters")}


def warn_of_lost_groups(
    catalog: Catalog, record: SelectionRecord, candidates: Candidates, member_ids: np.ndarray
) -> None:
    """Say which classes or clusters have candidates and no member.

    Where one sample in two is kept, not every class of one can keep its sample.
    """
    if record.balance_by == "none":
        return
    is_kept = are_members(candidates.sample_ids, member_ids)
    num_candidates = count_groups(candidates.groups)
    num_kept = count_groups(candidates.groups[is_kept], len(num_candidates))
    lost = np.flatnonzero((num_candidates > 0) & (num_kept == 0)).tolist()
    if not lost:
        return
    names = load_group_names(catalog, record.balance_by, lost[:_MAX_NAMES_SHOWN])
    log.warning(
        "%s of %s %s have no sample in '%s': %s%s; raise --keep, or %s",
        f"{len(lost):,}",
        f"{np.count_nonzero(num_candidates):,}",
        _WORDS[record.balance_by][1],
        record.selection,
        ", ".join(names),
        " …" if len(lost) > len(names) else "",
        "let the strategy choose in each by --scope"
        if chooses_for_itself(record.strategy)
        else "give each the same quota by --balance-base uniform",
    )


def warn_of_nearly_lost_groups(
    catalog: Catalog, record: SelectionRecord, candidates: Candidates, member_ids: np.ndarray
) -> None:
    """Say in one line which groups lose more than 90%, and much more than an equal cut takes.

    Groups are classes where there are labels, else clusters, whatever the balance is by. Those of
    which nothing is left are in a warning of their own where the balance is by them.
    """
    by = _choose_groups(catalog, record)
    if by is None:
        return
    is_balanced = by == record.balance_by
    if is_balanced:
        groups = SampleGroups([], candidates.groups)
    else:
        groups = load_groups(catalog, choose_grouping(catalog, by, None), candidates.sample_ids)
    codes = groups.codes
    sizes = count_groups(codes)
    kept = count_groups(codes[are_members(candidates.sample_ids, member_ids)], len(sizes))
    keep = len(member_ids) / len(codes)
    is_lost = are_starved(kept, keep * sizes, LEAST_OF_EQUAL) & (kept < LEAST_SHARE * sizes)
    if is_balanced:
        is_lost &= kept > 0
    lost = np.flatnonzero(is_lost)
    if not len(lost):
        return
    shown = lost[np.argsort(kept[lost] / sizes[lost], kind="stable")][:_MAX_NAMES_SHOWN].tolist()
    if is_balanced:
        shown = sorted(shown)  # the order in which names come
        names = dict(zip(shown, load_group_names(catalog, by, shown), strict=True))
    else:
        names = {index: repr(groups.names[index]) for index in shown}
    examples = ", ".join(f"{names[index]} ({kept[index]:,} of {sizes[index]:,})" for index in shown)
    log.warning(
        "%s of %s lose more than 90%% in '%s', which keeps %.3g of all: %s%s; "
        "`curate audit %s` says more",
        f"{len(lost):,}",
        count_of(int(np.count_nonzero(sizes)), *_WORDS[by]),
        record.selection,
        keep,
        examples,
        " …" if len(lost) > len(shown) else "",
        record.selection,
    )


def _choose_groups(catalog: Catalog, record: SelectionRecord) -> str | None:
    """label where there are labels, else cluster where there are clusters."""
    if record.balance_by == LABEL:
        return LABEL
    with catalog.reading() as connection:
        ((has_labels,),) = connection.execute(
            "select count(*) > 0 from (select 1 from samples where label is not null limit 1)"
        ).fetchall()
    if has_labels:
        return LABEL
    return CLUSTER if catalog.list_names(ClusteringRecord) else None
