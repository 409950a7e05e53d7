"""The warning of a selection that loses nearly all of a class, or of a cluster without labels."""

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, SelectionRecord
from curate.catalog.samples import are_members
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

# A group is nearly lost where less than LEAST_SHARE of it is kept, and, beyond chance, less than
# half of what an equal cut would leave: at --keep 0.1 every group loses 90%.
LEAST_SHARE, LEAST_OF_EQUAL = 0.1, 0.5
_MAX_NAMES_SHOWN = 5


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


_WORDS = {LABEL: ("class", "classes"), CLUSTER: ("cluster", "clusters")}


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
