"""`curate compare`: how alike selections are, and what each keeps that the others drop."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ClusteringRecord, SelectionRecord
from curate.catalog.samples import fill_column, load_members
from curate.catalog.sql import quote_literal
from curate.errors import OptionError
from curate.formats.sample_ids import are_members
from curate.options import Option, verb
from curate.progress import announce, log
from curate.stages.audit.stage import ClusteringOfGroups, GroupBy
from curate.stages.compare.picture import draw_comparison
from curate.stages.gallery import check_png
from curate.stages.sample_groups import (
    Grouping,
    SampleGroups,
    choose_grouping,
    load_groups,
)
from curate.stages.staleness import warn_if_stale
from curate.training.nearest import draw_samples

_MAX_RANKED = 1_000_000  # samples; more are thinned by a hash of the ids
_MAX_NAME = 120  # characters of a file's name


class SelectionPair(NamedTuple):
    """Two selections: how many samples both keep, and how alike their scorings rank.

    `jaccard` is the shared members over all members of both, `random_jaccard` what is expected of
    random selections of the same sizes. `spearman` is None where one has no scoring, or ranks all
    samples alike.
    """

    a: str
    b: str
    num_a: int
    num_b: int
    num_shared: int
    jaccard: float
    random_jaccard: float
    scoring_a: str | None
    scoring_b: str | None
    spearman: float | None


class GroupOfPair(NamedTuple):
    """Of a group, how many samples both selections keep, only the one, only the other, neither."""

    a: str
    b: str
    group_name: str
    num_both: int
    num_only_a: int
    num_only_b: int
    num_neither: int


@dataclass(frozen=True)
class SelectionComparison:
    """What was found: each pair, each group of each pair, and the picture's path."""

    selections: list[str]
    grouped_by: str
    pairs: list[SelectionPair]
    groups: list[GroupOfPair]
    picture: Path

    def __str__(self) -> str:
        return str(self.picture)


@verb()
def compare(
    catalog: Catalog | str | Path,
    selections: Annotated[list[str], Option("Names of two selections or more.")],
    *,
    by: GroupBy = None,
    clustering: ClusteringOfGroups = None,
    out: Annotated[
        str | Path | None,
        Option(
            "PNG to write; an SVG is put beside it.",
            metavar="FILE",
            short="-o",
            default="figures/compare-….png in the catalog",
            check=check_png,
        ),
    ] = None,
) -> SelectionComparison:
    """Compare selections in pairs: how much they share, and whom only one of them keeps.

    Overlap is Jaccard's: shared members over all members of both, beside what two random selections
    of these sizes are expected to share. Spearman's rank correlation is that of their scorings,
    whatever the strategies did with them, over the samples that both have scored; of more than a
    million, over a million drawn by a hash. Groups are the classes, or as `by` says.
    """
    catalog = Catalog(catalog)
    names = list(dict.fromkeys(selections))
    if len(names) < 2:
        raise OptionError("give two selections or more; `curate list selections` has their names")
    records = [catalog.require(SelectionRecord, name) for name in names]
    announce("compare: reading the selections")
    grouping = _choose_grouping(catalog, by, clustering)
    grouped_by = grouping.by if grouping else "all"
    for record in records:
        warn_if_stale(catalog, record)
    with catalog.reading() as connection:
        rows = connection.execute("select sample_id from samples order by 1").fetchnumpy()
    sample_ids = np.asarray(rows["sample_id"], np.int64)
    is_member = [are_members(sample_ids, load_members(catalog, name)) for name in names]
    groups = SampleGroups(["all"], np.zeros(len(sample_ids), np.int32))
    if grouping:
        groups = load_groups(catalog, grouping, sample_ids)
    correlations = _correlate(catalog, [record.scoring for record in records], sample_ids)
    pairs: list[SelectionPair] = []
    groups_of_pairs: list[GroupOfPair] = []
    for i, j in itertools.combinations(range(len(names)), 2):
        spearman = correlations.get((records[i].scoring, records[j].scoring))
        pairs.append(_compare_pair(records[i], records[j], is_member[i], is_member[j], spearman))
        groups_of_pairs += _count_groups(names[i], names[j], is_member[i], is_member[j], groups)
    picture = _choose_picture(catalog, names, grouping.name if grouping else grouped_by, out)
    comparison = SelectionComparison(names, grouped_by, pairs, groups_of_pairs, picture)
    draw_comparison(picture.with_name(picture.name.removesuffix(".png")), comparison)
    log.info("drew %s", picture)
    return comparison


def _choose_grouping(catalog: Catalog, by: str | None, clustering: str | None) -> Grouping | None:
    """As for an audit; None where nothing was asked for, and there are no labels or clusters."""
    if by is None and clustering is None and not catalog.list_names(ClusteringRecord):
        with catalog.reading() as connection:
            ((has_labels,),) = connection.execute(
                "select count(*) > 0 from (select label from samples where label is not null "
                "limit 1)"
            ).fetchall()
        if not has_labels:
            return None
    return choose_grouping(catalog, by, clustering)


def _compare_pair(
    a: SelectionRecord,
    b: SelectionRecord,
    is_in_a: np.ndarray,
    is_in_b: np.ndarray,
    spearman: float | None,
) -> SelectionPair:
    num_a, num_b = int(is_in_a.sum()), int(is_in_b.sum())
    num_shared = int((is_in_a & is_in_b).sum())
    expected = num_a * num_b / len(is_in_a)
    return SelectionPair(
        a=a.selection,
        b=b.selection,
        num_a=num_a,
        num_b=num_b,
        num_shared=num_shared,
        jaccard=num_shared / max(num_a + num_b - num_shared, 1),
        random_jaccard=expected / max(num_a + num_b - expected, 1),
        scoring_a=a.scoring,
        scoring_b=b.scoring,
        spearman=spearman,
    )


def _count_groups(
    a: str, b: str, is_in_a: np.ndarray, is_in_b: np.ndarray, groups: SampleGroups
) -> list[GroupOfPair]:
    """The groups of a pair, those that it differs on most first."""

    def count(is_counted: np.ndarray) -> np.ndarray:
        return np.bincount(groups.codes[is_counted], minlength=len(groups.names))

    columns = (
        count(is_in_a & is_in_b),
        count(is_in_a & ~is_in_b),
        count(is_in_b & ~is_in_a),
        count(~is_in_a & ~is_in_b),
    )
    table = np.stack(columns, axis=1)
    order = np.argsort(-(table[:, 1] + table[:, 2]), kind="stable")
    return [
        GroupOfPair(a, b, groups.names[index], *table[index].tolist())
        for index in order
        if table[index].any()
    ]


def _correlate(
    catalog: Catalog, scorings: list[str | None], sample_ids: np.ndarray
) -> dict[tuple[str | None, str | None], float]:
    """Spearman's rank correlations of pairs of scorings; none where it is not defined."""
    from scipy.stats import spearmanr

    names = list(dict.fromkeys(name for name in scorings if name is not None))
    sample_ids = draw_samples(sample_ids, _MAX_RANKED, seed=0)
    scores = {name: np.full(len(sample_ids), np.nan) for name in names}
    with catalog.reading() as connection:
        for name, values in scores.items():
            condition = f"scoring = {quote_literal(name)} and score is not null"
            query = f"select sample_id, score from scores where {condition}"
            fill_column(connection, query, sample_ids, values)
    correlations: dict[tuple[str | None, str | None], float] = {}
    for a, b in itertools.product(names, repeat=2):
        is_scored = np.isfinite(scores[a]) & np.isfinite(scores[b])
        x, y = scores[a][is_scored], scores[b][is_scored]
        if len(x) and np.ptp(x) > 0 and np.ptp(y) > 0:
            correlations[a, b] = 1.0 if a == b else float(spearmanr(x, y).statistic)
    return correlations


def _choose_picture(
    catalog: Catalog, names: list[str], grouped_by: str, out: str | Path | None
) -> Path:
    """The PNG to write: by default under the names of the selections, shortened by a hash."""
    if out:
        path = Path(out).expanduser().absolute()
        return path.with_name(f"{path.stem}.png")
    words = "-with-".join(names)
    if len(words) > _MAX_NAME:
        digest = hashlib.sha256(words.encode()).hexdigest()[:8]
        words = f"{words[:_MAX_NAME]}-{digest}"
    return catalog.path / "figures" / f"compare-{words}-by_{grouped_by}.png"
