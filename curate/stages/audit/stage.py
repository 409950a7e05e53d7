"""`curate audit`: what a selection leaves of each group, and how well it covers what it drops."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    AuditContributionRecord,
    AuditGroupRecord,
    AuditRecord,
    ClusteringRecord,
    EmbeddingRecord,
    SelectionRecord,
)
from curate.catalog.samples import load_members
from curate.errors import CurateError
from curate.formats.sample_ids import are_members
from curate.formatting import count_of
from curate.options import EmbeddingName, Option, Seed, SetName, verb
from curate.progress import log, progress_bar
from curate.stages.audit.contributions import find_scorings, measure_contributions
from curate.stages.audit.measures import (
    MAX_SUBSETS,
    NUM_PASSES,
    Coverage,
    effective_number,
    kl_divergence,
    measure_coverage,
)
from curate.stages.audit.picture import draw_contributions, draw_groups
from curate.stages.dedup.stage import EPS_SHARE
from curate.stages.sample_groups import (
    Grouping,
    SampleGroups,
    are_starved,
    choose_grouping,
    load_groups,
)
from curate.stages.select.candidates import load_candidates
from curate.stages.select.random_draws import RandomDraws
from curate.stages.staleness import audit_checksum, warn_if_stale
from curate.storage.checksums import Checksum

_MAX_NAMES_SHOWN = 5

GroupBy = Annotated[
    str | None,
    Option(
        "What samples are grouped by: label, cluster, or a column of sample_scores.",
        metavar="label|cluster|COLUMN",
        default="label, or cluster without labels",
    ),
]
ClusteringOfGroups = Annotated[
    str | None, Option("Clustering of --by cluster.", default="the newest")
]


@dataclass(frozen=True)
class Audit:
    """What an audit found: the whole, each group, the least kept first, and the pictures.

    `contributions` are empty without a scoring of the metric contribution.
    """

    record: AuditRecord
    groups: list[AuditGroupRecord]
    contributions: list[AuditContributionRecord]
    pictures: list[Path]

    def __str__(self) -> str:
        return self.record.audit


class StarvedGroupsError(CurateError):
    """Groups keep less than `--fail-below` allows; `audit` is what was found."""

    def __init__(self, message: str, audit: Audit) -> None:
        super().__init__(message)
        self.audit = audit


@verb()
def audit(
    catalog: Catalog | str | Path,
    selection: Annotated[str, Option("A selection's name.")],
    *,
    by: GroupBy = None,
    clustering: ClusteringOfGroups = None,
    floor: Annotated[
        float,
        Option(
            "A group is below the floor where it keeps less than this share of what a random "
            "selection keeps of it.",
            minimum=0,
            maximum=1,
            metavar="F",
        ),
    ] = 0.5,
    fail_below: Annotated[
        float | None,
        Option(
            "Fail (exit status 1) where a group keeps less than this share of what a random "
            "selection keeps of it.",
            above=0,
            maximum=1,
            metavar="F",
        ),
    ] = None,
    seeds: Annotated[int, Option("Random selections to compare with.", minimum=1)] = 5,
    embedding: EmbeddingName = None,
    seed: Seed = 0,
    name: SetName = None,
) -> Audit:
    """Say what a selection leaves of each group, and how well it covers what it drops.

    Everything is compared with the mean of `seeds` random selections of the same size from the same
    candidates, under the same balance. Groups that vanish, and those `below the floor`: beyond
    chance, which is three standard deviations, so a group of which random keeps fewer than ten is
    never below it. The KL divergence of the groups of the selection from those of all candidates,
    in nats, and the effective number of groups, exp of their entropy. Coverage: the cosine distance
    from dropped samples to the nearest kept one, mean and 99th percentile, over up to 2,000 dropped
    ones; and the share of the kept samples that have a near duplicate among the kept ones, over up
    to 1,000, by the threshold that `curate dedup` takes by default; of up to three of the random
    selections. Columns of numbers are divided into ranges with about as many samples in each.

    Where there is a scoring of the metric contribution, also how even the contributions are, before
    (all) and after pruning; where there is one within the selection too (`curate probe --within`,
    `curate score contribution --within`), also by models that were trained on what is kept alone.

    The audit is kept in the catalog and shown in the report; figures/audit-NAME is its picture.
    Exit status 0, whatever was found; with `fail_below`, 1 where a group keeps less, after the
    audit was printed: in a recipe, that ends the run.
    """
    catalog = Catalog(catalog)
    record = catalog.require(SelectionRecord, selection)
    parent = catalog.require(EmbeddingRecord, embedding)
    grouping = choose_grouping(catalog, by, clustering)
    name = sets.check_name(name or f"{selection}-by_{grouping.name}")
    samples = _load_samples(catalog, record, grouping)
    scorings = find_scorings(catalog, selection)
    settings = _Settings(
        selection, grouping.by, grouping.clustering, parent.embedding, floor, seeds, seed
    )
    code_checksum = audit_checksum()
    fingerprint = provenance.fingerprint(
        "audit",
        settings._asdict(),
        record.fingerprint,
        catalog.embedding_fingerprint(parent.embedding),
        samples.checksum,
        *(scoring.fingerprint for scoring in scorings.records),
        code_checksum,
    )
    if catalog.find_up_to_date(AuditRecord, name, fingerprint):
        log.info("nothing to do: '%s' is this audit already", name)
        result = load_audit(catalog, name)
        if not result.pictures:  # it was renamed, or the picture removed
            draw_groups(_figure(catalog, name), result.record, result.groups)
            result = load_audit(catalog, name)
    else:
        warn_if_stale(catalog, record)
        parents = [record.run_id, parent.run_id]
        if grouping.clustering:
            parents.append(catalog.require(ClusteringRecord, grouping.clustering).run_id)
        parents += [scoring.run_id for scoring in scorings.records]
        with catalog.record_run(
            "audit",
            name,
            settings._asdict(),
            parents=parents,
            fingerprint=fingerprint,
            code_checksum=code_checksum,
        ) as run_id:
            measured, groups, draws = _measure(
                catalog, name, samples, settings, fingerprint, run_id
            )
            contributions = measure_contributions(
                catalog, name, scorings, samples.sample_ids, samples.is_kept, draws
            )
            draw_groups(_figure(catalog, name), measured, groups)
            if contributions.curves:
                draw_contributions(
                    _figure(catalog, f"{name}-contributions"), selection, contributions
                )
            _store(catalog, measured, groups, contributions.records)
        result = load_audit(catalog, name)
    _log_summary(result)
    if fail_below is not None:
        _check(result, fail_below)
    return result


def load_audit(catalog: Catalog, name: str) -> Audit:
    """An audit that the catalog has. Raises CurateError where it has not."""
    record = catalog.require(AuditRecord, name)
    with catalog.reading() as connection:
        rows = connection.execute(
            "select * from audit_groups where audit = ? order by rowid", [name]
        ).fetchall()
        contributions = connection.execute(
            "select * from audit_contributions where audit = ? order by rowid", [name]
        ).fetchall()
    figures = [_figure(catalog, name), _figure(catalog, f"{name}-contributions")]
    pictures = [figure.with_name(f"{figure.name}.png") for figure in figures]
    return Audit(
        record,
        [AuditGroupRecord(*row) for row in rows],
        [AuditContributionRecord(*row) for row in contributions],
        [picture for picture in pictures if picture.is_file()],
    )


def _figure(catalog: Catalog, name: str) -> Path:
    """Where a picture is, without its extension."""
    return catalog.path / "figures" / f"audit-{name}"


class _Settings(NamedTuple):
    """What an audit depends on besides the corpus and the members."""

    selection: str
    by: str
    clustering: str | None
    embedding: str
    floor: float
    seeds: int
    seed: int


@dataclass(frozen=True)
class _Samples:
    """The candidates: sorted ids int64 [n], which are kept, bool [n], and their groups.

    `draws` draws as many of them at random.
    """

    sample_ids: np.ndarray
    is_kept: np.ndarray
    groups: SampleGroups
    draws: RandomDraws

    @property
    def checksum(self) -> str:
        checksum = Checksum()
        for data in (self.sample_ids.data, self.groups.codes.data):
            checksum.update(data)
        checksum.update("\n".join(self.groups.names).encode())
        return checksum.text


def _load_samples(catalog: Catalog, record: SelectionRecord, grouping: Grouping) -> _Samples:
    candidates = load_candidates(catalog, record.scoring, record.balance_by, record.where_sql)
    sample_ids = candidates.sample_ids
    if len(sample_ids) != record.num_candidates:
        raise CurateError(
            f"'{record.selection}' was taken from {record.num_candidates:,} candidates, which are "
            f"{len(sample_ids):,} now: select it anew"
        )
    is_kept = are_members(sample_ids, load_members(catalog, record.selection))
    draws = RandomDraws(candidates.groups, sample_ids, record, int(is_kept.sum()))
    return _Samples(sample_ids, is_kept, load_groups(catalog, grouping, sample_ids), draws)


def _measure(
    catalog: Catalog,
    name: str,
    samples: _Samples,
    settings: _Settings,
    fingerprint: str,
    run_id: int,
) -> tuple[AuditRecord, list[AuditGroupRecord], list[np.ndarray]]:
    """The record, the groups, and the random draws, bool [n] each."""
    codes, num_names = samples.groups.codes, len(samples.groups.names)

    def count(is_drawn: np.ndarray) -> np.ndarray:
        return np.bincount(codes[is_drawn], minlength=num_names)

    draws = [samples.draws(settings.seed + index) for index in range(settings.seeds)]
    random_counts = [count(is_drawn) for is_drawn in draws]
    subsets = [samples.is_kept, *draws][:MAX_SUBSETS]
    sizes, kept = np.bincount(codes, minlength=num_names), count(samples.is_kept)
    expected = np.mean(random_counts, axis=0)
    is_below = are_starved(kept, expected, settings.floor)
    files = catalog.vector_files(settings.embedding)
    with progress_bar("compare", NUM_PASSES * sum(files.values())) as advance:
        coverage = measure_coverage(
            files, samples.sample_ids, subsets, EPS_SHARE, settings.seed, advance
        )
    record = AuditRecord(
        audit=name,
        selection=settings.selection,
        grouped_by=settings.by,
        clustering=settings.clustering,
        embedding=settings.embedding,
        floor=settings.floor,
        seeds=settings.seeds,
        seed=settings.seed,
        num_candidates=len(codes),
        num_samples=int(kept.sum()),
        num_groups=int((sizes > 0).sum()),
        num_vanished=int(((sizes > 0) & (kept == 0)).sum()),
        random_num_vanished=float(
            np.mean([((sizes > 0) & (counts == 0)).sum() for counts in random_counts])
        ),
        num_below_floor=int(is_below.sum()),
        random_num_below_floor=float(
            np.mean(
                [are_starved(counts, expected, settings.floor).sum() for counts in random_counts]
            )
        ),
        kl=kl_divergence(kept, sizes),
        random_kl=float(np.mean([kl_divergence(counts, sizes) for counts in random_counts])),
        effective_groups=effective_number(kept),
        random_effective_groups=float(
            np.mean([effective_number(counts) for counts in random_counts])
        ),
        all_effective_groups=effective_number(sizes),
        **_coverage_columns(coverage),
        fingerprint=fingerprint,
        run_id=run_id,
    )
    # Those that keep least against random come first, large ones before small ones.
    ratios = kept / np.maximum(expected, 1e-9)
    order = np.lexsort((-sizes, ratios, ~is_below))
    groups = [
        AuditGroupRecord(
            audit=name,
            group_name=samples.groups.names[index],
            num_candidates=int(sizes[index]),
            num_kept=int(kept[index]),
            random_num_kept=float(expected[index]),
            is_below_floor=bool(is_below[index]),
        )
        for index in order.tolist()
        if sizes[index]
    ]
    return record, groups, draws


def _coverage_columns(coverage: Coverage | None) -> dict[str, float | None]:
    columns: dict[str, float | None] = {
        "near_duplicate_cosine": coverage.near_duplicate_cosine if coverage else None
    }
    for name in ("distance_mean", "distance_99", "near_duplicate_share"):
        values = getattr(coverage, name) if coverage else np.full(2, np.nan)
        # NaN where nothing was dropped, or has a vector.
        columns[name] = float(values[0]) if np.isfinite(values[0]) else None
        mean = float(values[1:].mean())
        columns[f"random_{name}"] = mean if np.isfinite(mean) else None
    return columns


def _store(
    catalog: Catalog,
    record: AuditRecord,
    groups: list[AuditGroupRecord],
    contributions: list[AuditContributionRecord],
) -> None:
    import pyarrow as pa

    with catalog.writing() as connection:
        sets.replace_set(connection, record)
        columns = dict(zip(AuditGroupRecord._fields, zip(*groups, strict=True), strict=True))
        connection.register(
            "audited", pa.table({key: list(value) for key, value in columns.items()})
        )
        connection.execute("insert into audit_groups by name select * from audited")
        for row in contributions:
            sets.insert_row(connection, "audit_contributions", row._asdict())


def _log_summary(result: Audit) -> None:
    record = result.record
    below = [group.group_name for group in result.groups if group.is_below_floor]
    subject = f"'{record.selection}' by {record.grouped_by}"
    if not below:
        log.info("%s: no group is below the floor", subject)
        return
    log.warning(
        "%s: %s of %s below the floor, %s: %s%s",
        subject,
        f"{len(below):,}",
        count_of(record.num_groups, "group"),
        f"less than {record.floor:g} of what random keeps",
        ", ".join(map(repr, below[:_MAX_NAMES_SHOWN])),
        " …" if len(below) > _MAX_NAMES_SHOWN else "",
    )


def _check(result: Audit, fail_below: float) -> None:
    """StarvedGroupsError where a group keeps less than that share of what random keeps."""
    kept = np.array([group.num_kept for group in result.groups])
    expected = np.array([group.random_num_kept for group in result.groups])
    starved = np.flatnonzero(are_starved(kept, expected, fail_below))
    if not len(starved):
        return
    names = ", ".join(repr(result.groups[index].group_name) for index in starved[:_MAX_NAMES_SHOWN])
    more = " …" if len(starved) > _MAX_NAMES_SHOWN else ""
    raise StarvedGroupsError(
        f"{count_of(len(starved), 'group')} of '{result.record.selection}' "
        f"{'keeps' if len(starved) == 1 else 'keep'} less than {fail_below:g} of what random "
        f"keeps: {names}{more}; raise --keep or --balance, or balance by these groups "
        "(--balance-by)",
        result,
    )
