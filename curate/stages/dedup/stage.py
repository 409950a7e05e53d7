"""`curate dedup`: groups of duplicates, by bytes, by pixels and by vectors; one of each stays."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ClusteringRecord,
    DeduplicationRecord,
    EmbeddingRecord,
    SelectionRecord,
)
from curate.catalog.samples import fetch_ids, fill_column
from curate.catalog.sql import quote_identifier, quote_literal
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.formats.sample_ids import are_members
from curate.formatting import count_of, file_safe, label_of_pattern
from curate.options import EmbeddingName, Option, SetName, Within, Workers, verb
from curate.package_data import read_sql
from curate.progress import log
from curate.stages.dedup.against import (
    Matches,
    count_by_eps,
    find_near_matches,
    merge_matches,
)
from curate.stages.dedup.calibration import (
    DEFAULT_RATE,
    draw_nearest_pairs,
    log_calibration,
    measure_calibration,
    write_curves,
)
from curate.stages.dedup.exact import (
    add_missing_checksums,
    check_has_checksums,
    load_exact_groups,
    load_exact_matches,
)
from curate.stages.dedup.groups import KINDS, Outcome, add_near, keep_one_of_each, number_groups
from curate.stages.dedup.methods import METHODS
from curate.stages.dedup.near import (
    NearSearch,
    NearSurvivors,
    choose_eps,
    find_clustering,
    list_vector_files,
    load_or_fit_centroids,
)
from curate.stages.dedup.neighbours import VectorFiles, VectorSets
from curate.stages.dedup.picture import MAX_IMAGES, MAX_ROWS, CaptionedImage, draw_groups
from curate.stages.gallery import ImageLocation
from curate.stages.other_catalog import OtherCatalog, open_other
from curate.stages.staleness import dedup_checksum, warn_if_stale
from curate.storage import files as storage
from curate.storage.checksums import Checksum

DEFAULT_METHOD, DEFAULT_KEEP_BEST = "greedy", "pixels"
# Of the usual distance to a nearest neighbour: see docs/duplicates.md.
EPS_SHARE = 0.15
# What --keep-best may be besides columns of sample_scores.
_IMAGE_VALUES = {
    "pixels": "width::double * height",
    "bytes": "coalesce(image_bytes, num_bytes)::double",
}
_STRATEGY = "dedup"  # of its selections


def _check_options(arguments: Mapping[str, Any]) -> None:
    if arguments["eps"] is not None and arguments["keep"] is not None:
        raise OptionError("--eps and --keep: give one of them")
    near_only = ("eps", "keep", "clustering") if arguments["exact"] else ()
    for name in near_only:
        if arguments[name] is not None:
            raise OptionError(f"--exact compares no vectors: leave out --{name}")
    _check_calibration(arguments)
    if arguments["against"] and arguments["keep"] is not None:
        raise OptionError("--against removes what the other catalog has: leave out --keep")
    if arguments["against"] and arguments["method"] != DEFAULT_METHOD:
        raise OptionError("--against compares pairs, and makes no chains: leave out --method")


def _check_calibration(arguments: Mapping[str, Any]) -> None:
    if not arguments["calibrate"]:
        if arguments["false_matches"] is not None:
            raise OptionError("--false-matches is measured by --calibrate: give both")
        return
    if arguments["false_matches"] is not None and arguments["eps"] is not None:
        raise OptionError("--false-matches chooses eps: leave out --eps")
    if arguments["exact"]:
        raise OptionError("--exact compares no vectors: leave out --calibrate")
    if arguments["keep"] is not None:
        raise OptionError("--keep chooses eps: run it first, then --calibrate with its --eps")
    if arguments["against"]:
        raise OptionError(
            "--calibrate measures within one catalog: run it without --against, then give its --eps"
        )


@verb(check=_check_options)
def dedup(
    catalog: Catalog | str | Path,
    *,
    eps: Annotated[
        float | None,
        Option(
            "Near duplicates have a cosine above 1 - eps.",
            above=0,
            below=2,
            default="by the distances in the corpus",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        Option("Choose eps so that this fraction stays.", above=0, below=1, metavar="F"),
    ] = None,
    calibrate: Annotated[
        bool,
        Option(
            "Choose eps by copies made of some images, and by what different ones are near; with "
            "--eps, say what that finds. Draws figures/calibration-NAME."
        ),
    ] = False,
    false_matches: Annotated[
        float | None,
        Option(
            "With --calibrate: the share of images that may have a different one nearer than eps.",
            above=0,
            below=1,
            metavar="R",
            default=f"{DEFAULT_RATE:g}",
        ),
    ] = None,
    exact: Annotated[bool, Option("Only duplicates by bytes and by pixels; no vectors.")] = False,
    method: Annotated[
        str,
        Option("Who goes, where near duplicates make chains.", choices=METHODS),
    ] = DEFAULT_METHOD,
    keep_best: Annotated[
        str,
        Option(
            "Of a group the highest stays: pixels, bytes, or a column of sample_scores, such as a "
            "scoring.",
            metavar="COLUMN",
        ),
    ] = DEFAULT_KEEP_BEST,
    against: Annotated[
        list[str] | str | None,
        Option(
            "Find duplicates of another catalog's samples, or of other shards, such as a test set; "
            "repeatable.",
            metavar="CATALOG|SHARDS",
        ),
    ] = None,
    embedding: EmbeddingName = None,
    clustering: Annotated[
        str | None,
        Option(
            "Clusters that save comparisons; they change no pairs.",
            default="the newest of this corpus, or centroids of its own",
        ),
    ] = None,
    within: Within = None,
    add_checksums: Annotated[
        bool, Option("Read the shards of samples without checksums first, from old catalogs.")
    ] = False,
    workers: Workers = 1,
    name: SetName = None,
) -> str:
    """Find duplicates, and return the name of the groups and of the selection of those that stay.

    Exact duplicates have the same bytes, or the same pixels when decoded; near duplicates have
    vectors with a cosine above 1 − `eps`. Every such pair of the corpus counts, in whatever
    clusters. Of exact duplicates one stays; of the rest `method` says who goes. Looked at from the
    best by `keep_best` down (then nearest to a centroid, then in tar order), greedy removes a
    sample if one that stays is near; components keeps the first of all that are connected; upper,
    the published rule of SemDeDup, removes a sample if any before it is near, whether that one
    stays or not. Greedy is the default because only its groups hold what they promise: each sample
    that goes has a near duplicate that stays, and no two that stay are near. The default `eps` is
    0.15 of the median distance from a sample to the nearest of a thousand others. `calibrate`
    measures instead what a threshold does on this corpus: how many copies of its images, made and
    embedded for that, it finds, and how many images have another one as near. `against`
    compares with another catalog: the selection leaves out every sample that it has too. Raises
    CurateError.
    """
    catalog = Catalog(catalog)
    settings: dict[str, Any] = {
        "eps": eps,
        "keep": keep,
        "exact": exact,
        "method": method,
        "keep_best": keep_best,
        "against": against,
        "within": within,
        "calibrate": calibrate,
        "false_matches": false_matches,
    }
    name = sets.check_name(name or _default_name(settings))
    catalog.check_column_name(DeduplicationRecord, name)
    selection = catalog.require(SelectionRecord, within) if within else None
    parent = None
    if not exact or against or embedding:
        parent = catalog.require(EmbeddingRecord, embedding)
    resources = Resources(workers)
    if add_checksums:
        add_missing_checksums(catalog, resources)
    check_has_checksums(catalog, is_required=exact)
    other = open_other(catalog, parent, against, "--against") if against and parent else None
    if other:
        if add_checksums:
            add_missing_checksums(other.catalog, resources)
        check_has_checksums(other.catalog, is_required=exact)
    candidates = _load_candidates(catalog, keep_best, within)
    centers = None
    if parent:
        centers = find_clustering(catalog, parent.embedding, clustering, within)
    job = _DedupJob(catalog, name, settings, candidates, parent, centers, other, within, resources)
    fingerprint = provenance.fingerprint("dedup", settings, *job.content(), dedup_checksum())
    existing = catalog.find_up_to_date(DeduplicationRecord, name, fingerprint)
    if existing and catalog.find_up_to_date(SelectionRecord, name, fingerprint):
        log.info("nothing to do: '%s' is this already; %s", name, _summary(existing))
        return name
    _check_is_free(catalog, name)
    sources = [source for source in (parent, selection, centers) if source is not None]
    for source in sources[bool(parent) :]:
        warn_if_stale(catalog, source)
    with catalog.record_run(
        "dedup",
        name,
        settings,
        parents=[source.run_id for source in sources],
        fingerprint=fingerprint,
        code_checksum=dedup_checksum(),
    ) as run_id:
        rows, used_eps = job.run(run_id)
        record = DeduplicationRecord(
            deduplication=name,
            embedding=None if exact or parent is None else parent.embedding,
            method="exact" if exact else method,
            eps=used_eps,
            keep_best=keep_best,
            against=other.name if other else None,
            num_candidates=len(candidates.sample_ids),
            num_groups=len(np.unique(rows.group_ids)),
            num_rows=len(rows.sample_ids),
            num_exact=0,  # these three are counted in the commit
            num_near=0,
            num_contradicting=0,
            fingerprint=fingerprint,
            run_id=run_id,
        )
        record = _commit(catalog, record, rows, candidates.sample_ids)
    log.info("deduplication '%s': %s", name, _summary(record))
    if record.num_contradicting:
        log.warning(
            "%s groups of duplicates have several labels, of which all but one must be wrong: "
            "`curate query contradicting_labels --param deduplication=%s`",
            f"{record.num_contradicting:,}",
            name,
        )
    _draw(catalog, record, other)
    return name


class _Candidates(NamedTuple):
    """Sorted ids int64 [n], and the value by which the best of a group stays, NaN for none."""

    sample_ids: np.ndarray
    values: np.ndarray


class _DuplicateRows(NamedTuple):
    """The rows of `duplicates`, [r] each; `other_ids` are those of the other catalog."""

    group_ids: np.ndarray
    sample_ids: np.ndarray
    stays: np.ndarray
    kinds: np.ndarray  # index in KINDS, or −1
    similarities: np.ndarray
    other: tuple[OtherCatalog, np.ndarray] | None


def _default_name(settings: dict[str, Any]) -> str:
    against = settings["against"]
    patterns = [against] if isinstance(against, str) else against or []
    words = [
        "dedup",
        "exact" if settings["exact"] else None,
        f"eps{settings['eps']:.10g}" if settings["eps"] is not None else None,
        f"keep{settings['keep']:.10g}" if settings["keep"] is not None else None,
        settings["method"] if settings["method"] != DEFAULT_METHOD else None,
        "calibrated" if settings["calibrate"] else None,
        f"{settings['false_matches']:.10g}" if settings["false_matches"] is not None else None,
        file_safe(settings["keep_best"]) if settings["keep_best"] != DEFAULT_KEEP_BEST else None,
        f"in-{settings['within']}" if settings["within"] else None,
        *(f"against-{label_of_pattern(pattern)}" for pattern in patterns[:1]),
    ]
    return "-".join(filter(None, words))


def _check_is_free(catalog: Catalog, name: str) -> None:
    """CurateError where another command made a selection of that name."""
    record = catalog.find(SelectionRecord, name)
    if record is not None and record.strategy != _STRATEGY:
        raise CurateError(f"'{name}' is the name of another selection: choose another --name")


def _load_candidates(catalog: Catalog, keep_best: str, within: str | None) -> _Candidates:
    with catalog.reading() as connection:
        value, table = _IMAGE_VALUES.get(keep_best), "samples"
        if value is None:
            value, table = f"{quote_identifier(keep_best)}::double", "sample_scores"
            types = dict(
                connection.execute(
                    "select column_name, data_type from duckdb_columns() "
                    "where table_name = 'sample_scores'"
                ).fetchall()
            )
            if not _is_numeric(types.get(keep_best, "")):
                numeric = [column for column, kind in types.items() if _is_numeric(kind)]
                raise OptionError(
                    f"--keep-best {keep_best}: no column of numbers is called so; there are: "
                    f"{', '.join([*_IMAGE_VALUES, *numeric])}"
                )
        ((count,),) = connection.execute("select count(*) from samples").fetchall()
        condition = _members_condition(within)
        sample_ids = fetch_ids(
            connection, f"select sample_id from samples where {condition}", count
        )
        values = np.full(len(sample_ids), np.nan)
        query = (
            f"select sample_id, {value} from {table} where {condition} and ({value}) is not null"
        )
        fill_column(connection, query, sample_ids, values)
    if not len(sample_ids):
        raise CurateError("the catalog has no samples: look at `curate query failures`")
    return _Candidates(sample_ids, values)


def _is_numeric(sql_type: str) -> bool:
    names = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "BOOLEAN")
    return any(name in sql_type for name in names) and "[" not in sql_type


def _members_condition(within: str | None) -> str:
    if within is None:
        return "true"
    members = f"select sample_id from members where selection = {quote_literal(within)}"
    return f"sample_id in ({members})"


@dataclass(frozen=True)
class _DedupJob:
    """One call of `dedup`, from the candidates to the rows of `duplicates`."""

    catalog: Catalog
    name: str
    settings: dict[str, Any]
    candidates: _Candidates
    parent: EmbeddingRecord | None
    clustering: ClusteringRecord | None
    other: OtherCatalog | None
    within: str | None
    resources: Resources

    def content(self) -> list[str]:
        """Fingerprints of all that the groups depend on."""
        checksum = Checksum()
        checksum.update(self.candidates.sample_ids.data)
        checksum.update(self.candidates.values.data)
        content = [checksum.text]
        with self.catalog.reading() as connection:
            content += map(
                str,
                connection.execute(
                    "select count(pixels_checksum), bit_xor(pixels_checksum) from samples"
                ).fetchall(),
            )
        if self.parent:
            content.append(self.catalog.embedding_fingerprint(self.parent.embedding))
        if self.clustering:
            content.append(self.clustering.fingerprint)
        if self.other:
            content.append(self.other.catalog.embedding_fingerprint(self.other.embedding))
            other_checksum = Checksum()
            other_checksum.update(self.other.sample_ids.data)
            content.append(other_checksum.text)
        return content

    def run(self, run_id: int) -> tuple[_DuplicateRows, float | None]:
        """The groups, and the threshold of near duplicates where there is one."""
        with ExitStack() as stack:
            folder = stack.enter_context(self.catalog.shared_tempdir(run_id))
            local_folder = Path(folder)
            if storage.is_url(folder):
                local_folder = stack.enter_context(self.catalog.temporary_folder())
            if self.other:
                return self._compare(self.other, folder, local_folder)
            return self._group(folder, local_folder)

    def _group(self, folder: str, local_folder: Path) -> tuple[_DuplicateRows, float | None]:
        all_ids, values = self.candidates
        exact_groups = load_exact_groups(self.catalog, _members_condition(self.within))
        outcome = keep_one_of_each(all_ids, values, exact_groups)
        eps = None
        if not self.settings["exact"] and self.parent:
            remaining = all_ids[outcome.kinds < 0]
            outcome, eps = self._add_near(self.parent, outcome, remaining, folder, local_folder)
        index, group_ids = number_groups(all_ids, outcome.survivor_ids)
        kinds = outcome.kinds[index]
        rows = _DuplicateRows(
            group_ids, all_ids[index], kinds < 0, kinds, outcome.similarities[index], None
        )
        return rows, eps

    def _add_near(
        self,
        parent: EmbeddingRecord,
        exact: Outcome,
        remaining: np.ndarray,
        folder: str,
        local_folder: Path,
    ) -> tuple[Outcome, float]:
        all_ids, values = self.candidates
        members_file = storage.join(folder, "members.npy")
        files, embedded_ids = list_vector_files(
            self.catalog, parent.embedding, remaining, members_file
        )
        centroids = load_or_fit_centroids(self.catalog, self.clustering, files)
        vectors = VectorSets((files,), parent.dim, centroids, folder, local_folder, self.resources)
        search = NearSearch.prepare(vectors, values, all_ids)
        method = self.settings["method"]
        if self.settings["calibrate"]:
            eps = self._calibrate(parent, files, embedded_ids, folder)
        else:
            eps = self._choose_eps(files, embedded_ids)
        if self.settings["keep"] is not None:
            num_staying = round(self.settings["keep"] * len(all_ids))
            num_wanted = len(remaining) - num_staying
            if num_wanted < 0:
                log.warning(
                    "%s exact duplicates go, which is more than --keep %g leaves out",
                    f"{len(all_ids) - len(remaining):,}",
                    self.settings["keep"],
                )
            eps = search.find_eps(max(num_wanted, 0), eps, method)
        near = search.find(eps, method)
        _log_chains(near, eps)
        survivors, cosines = all_ids.copy(), np.ones(len(all_ids))
        index = np.searchsorted(all_ids, near.sample_ids)
        survivors[index], cosines[index] = near.survivor_ids, near.cosines
        return add_near(all_ids, exact, survivors, cosines), eps

    def _choose_eps(self, files: VectorFiles, embedded_ids: np.ndarray) -> float:
        if self.settings["eps"] is not None:
            return float(self.settings["eps"])
        eps = choose_eps(files, embedded_ids, EPS_SHARE)
        if self.settings["keep"] is None:
            log.info(
                "eps %.4g: %g of the usual distance to a nearest neighbour (--eps sets another)",
                eps,
                EPS_SHARE,
            )
        return eps

    def _calibrate(
        self,
        parent: EmbeddingRecord,
        files: VectorFiles,
        embedded_ids: np.ndarray,
        folder: str,
    ) -> float:
        """The threshold for the rate asked for, or that of --eps; says and draws what it does."""
        calibration = measure_calibration(
            self.catalog, parent, files, embedded_ids, folder, self.resources.workers
        )
        rate = self.settings["false_matches"] or DEFAULT_RATE
        eps = self.settings["eps"] or calibration.choose_eps(rate)
        if rate * len(calibration.others) < 1 and self.settings["eps"] is None:
            log.warning(
                "%s images are too few for --false-matches %g: eps is the distance of the nearest "
                "pair among them",
                f"{len(calibration.others):,}",
                rate,
            )
        log_calibration(calibration, eps)
        figures = self.catalog.path / "figures"
        write_curves(figures / f"calibration-{self.name}", calibration, eps)
        pairs = figures / f"calibration-pairs-{self.name}.png"
        draw_nearest_pairs(pairs, self.catalog, files, embedded_ids, calibration, eps)
        log.info("drew %s/calibration-%s.png and %s", figures, self.name, pairs.name)
        return eps

    def _compare(
        self, other: OtherCatalog, folder: str, local_folder: Path
    ) -> tuple[_DuplicateRows, float | None]:
        exact = load_exact_matches(self.catalog, other.catalog, _members_condition(self.within))
        is_of_other = np.isin(exact.other_ids, other.sample_ids)
        exact = exact._replace(
            **{name: column[is_of_other] for name, column in exact._asdict().items()}
        )
        near, eps = None, None
        if not self.settings["exact"] and self.parent:
            near, eps = self._find_near_matches(self.parent, other, folder, local_folder)
        matches = merge_matches(exact, near)
        for name, num_others, num_own in count_by_eps(matches, eps):
            log.info(
                "%s: %s of %s samples of '%s' have a duplicate among %s samples here",
                name,
                f"{num_others:,}",
                f"{len(other.sample_ids):,}",
                other.name,
                f"{num_own:,}",
            )
        # A group for each sample of the other catalog, the most similar first.
        other_ids, inverse = np.unique(matches.other_ids, return_inverse=True)
        best = np.full(len(other_ids), -np.inf)
        np.maximum.at(best, inverse, matches.similarities)
        numbers = np.empty(len(other_ids), np.int64)
        numbers[np.lexsort((other_ids, -best))] = np.arange(1, len(other_ids) + 1)
        rows = _DuplicateRows(
            numbers[inverse],
            matches.sample_ids,
            np.zeros(len(inverse), bool),
            matches.kinds,
            matches.similarities,
            (other, matches.other_ids),
        )
        return rows, eps

    def _find_near_matches(
        self, parent: EmbeddingRecord, other: OtherCatalog, folder: str, local_folder: Path
    ) -> tuple[Matches, float]:
        own_files, _ = list_vector_files(
            self.catalog,
            parent.embedding,
            self.candidates.sample_ids,
            storage.join(folder, "members.npy"),
        )
        other_files, other_ids = list_vector_files(
            other.catalog,
            other.embedding,
            other.sample_ids,
            storage.join(folder, "other-members.npy"),
        )
        centroids = load_or_fit_centroids(self.catalog, self.clustering, own_files)
        sides = (own_files, other_files)
        vectors = VectorSets(sides, parent.dim, centroids, folder, local_folder, self.resources)
        # By the other's samples, among which no leakage from here makes any nearer.
        eps = self._choose_eps(other_files, other_ids)
        return find_near_matches(vectors, eps), eps


def _log_chains(near: NearSurvivors, eps: float) -> None:
    """Say which groups hung together only by chains, and what became of them."""
    if near.num_chains:
        log.info(
            "split %s of near pairs whose ends are not near: of these %s stay",
            count_of(near.num_chains, "chain"),
            count_of(near.num_split, "sample"),
        )
    num_unlike = int((near.cosines <= 1 - eps).sum())
    if num_unlike:
        log.warning(
            "%s for one that is not near, connected by a chain of others: --method greedy splits "
            "such groups",
            count_of(num_unlike, "sample goes", "samples go"),
        )


def _commit(
    catalog: Catalog, record: DeduplicationRecord, rows: _DuplicateRows, all_ids: np.ndarray
) -> DeduplicationRecord:
    """Store the groups and the selection of those that stay, in one transaction."""
    import pyarrow as pa

    kinds = np.array([*KINDS, None], object)[rows.kinds]
    columns: dict[str, Any] = {
        "group_id": rows.group_ids,
        "sample_id": rows.sample_ids,
        "stays": rows.stays,
        "kind": pa.array(kinds, pa.string()),
        "similarity": rows.similarities,
        "other_id": np.zeros(len(kinds), np.int64),
    }
    others = pa.table(
        {"other_id": pa.array([], pa.int64()), "url": pa.array([], pa.string())}
        | {"key": pa.array([], pa.string())}
    )
    if rows.other:
        other, columns["other_id"] = rows.other
        others = _describe_others(other)
    gone = np.unique(rows.sample_ids[~rows.stays])
    member_ids = all_ids[~are_members(all_ids, gone)]
    with catalog.writing() as connection:
        sets.check_column_name(connection, DeduplicationRecord, record.deduplication)
        sets.replace_set(connection, record)
        connection.register("found", pa.table(columns))
        connection.register("others", others)
        connection.execute(
            "insert into duplicates select $name, group_id, sample_id, stays, kind, similarity, "
            "others.url, others.key from found left join others using (other_id) "
            "order by group_id, stays desc, similarity desc, sample_id",
            {"name": record.deduplication},
        )
        ((num_exact, num_near),) = connection.execute(
            "select count(distinct sample_id) filter (kind <> 'near'), "
            "count(distinct sample_id) filter (kind = 'near') "
            "from duplicates where deduplication = ?",
            [record.deduplication],
        ).fetchall()
        ((num_contradicting,),) = connection.execute(
            f"select count(*) from ({read_sql('stages/contradicting')})",
            {"deduplication": record.deduplication},
        ).fetchall()
        record = replace(
            record, num_exact=num_exact, num_near=num_near, num_contradicting=num_contradicting
        )
        connection.execute(
            "delete from deduplications where deduplication = ?", [record.deduplication]
        )
        sets.insert_row(connection, record.table, record.to_dict())
        survivors = _survivor_record(record, len(member_ids))
        sets.replace_set(connection, survivors)
        connection.register("staying", pa.table({"sample_id": member_ids}))
        connection.execute(
            "insert into members (selection, sample_id) select ?, sample_id from staying",
            [record.deduplication],
        )
        sets.refresh_sample_scores(connection)
    return record


def _describe_others(other: OtherCatalog) -> Any:
    with other.catalog.reading() as connection:
        return connection.sql(
            "select sample_id as other_id, url, key from samples join shards using (shard_id)"
        ).to_arrow_table()


def _survivor_record(record: DeduplicationRecord, num_samples: int) -> SelectionRecord:
    return SelectionRecord(
        selection=record.deduplication,
        scoring=None,
        strategy=_STRATEGY,
        keep=num_samples / record.num_candidates,
        scope="global",
        balance=0.0,
        balance_by="none",
        balance_base="proportional",
        where_sql=None,
        seed=0,
        skip_hardest=0.0,
        num_candidates=record.num_candidates,
        num_samples=num_samples,
        fingerprint=record.fingerprint,
        run_id=record.run_id,
    )


def _summary(record: DeduplicationRecord) -> str:
    near = ""
    if record.eps is not None:
        near = f", {record.num_near:,} near (eps {record.eps:.4g}, {record.method})"
    gone = f"{record.num_exact:,} exact{near}"
    if record.against:
        return (
            f"{record.num_groups:,} samples of '{record.against}' have duplicates among "
            f"{record.num_candidates:,}: {gone}"
        )
    return (
        f"{record.num_groups:,} groups among {record.num_candidates:,} samples; duplicates that "
        f"go: {gone}"
    )


def _draw(catalog: Catalog, record: DeduplicationRecord, other: OtherCatalog | None) -> None:
    """figures/duplicates-NAME.png: the largest groups, or the matches from near to far."""
    if not record.num_rows:
        return
    path = catalog.path / "figures" / f"duplicates-{record.deduplication}.png"
    try:
        rows = _match_rows(catalog, record, other) if other else _group_rows(catalog, record)
        title = "the largest groups; the first of each stays"
        if other:
            title = "pairs: the other catalog's sample, then ours, from the most similar down"
        draw_groups(path, title, rows)
        log.info("drew %s", path)
    except (CurateError, OSError) as error:  # shards may be out of reach by now
        log.warning("no picture: %s", error)


def _group_rows(
    catalog: Catalog, record: DeduplicationRecord
) -> list[tuple[str, list[CaptionedImage]]]:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select group_id, size, url, byte_offset, samples.num_bytes, "
            "case when stays then 'stays' when kind = 'near' "
            "then format('{:.4f}', similarity) else kind end from ("
            "select *, count(*) over (partition by group_id) as size, row_number() over "
            "(partition by group_id order by stays desc, similarity desc, sample_id) as place "
            "from duplicates where deduplication = ? and group_id <= ?) "
            "join samples using (sample_id) join shards using (shard_id) "
            "where place <= ? order by group_id, place",
            [record.deduplication, MAX_ROWS, MAX_IMAGES],
        ).fetchall()
    groups: dict[str, list[CaptionedImage]] = {}
    for group_id, size, url, offset, length, caption in rows:
        images = groups.setdefault(f"group {group_id}: {size:,}", [])
        images.append(CaptionedImage(ImageLocation(url, offset, length), caption))
    return list(groups.items())


def _match_rows(
    catalog: Catalog, record: DeduplicationRecord, other: OtherCatalog
) -> list[tuple[str, list[CaptionedImage]]]:
    """Pairs spread over all groups, in the order of their similarity."""
    num_pairs = MAX_ROWS * MAX_IMAGES // 2
    with catalog.reading() as connection:
        rows = connection.execute(
            "with best as (select * from duplicates where deduplication = $1 "
            "qualify row_number() over "
            "(partition by group_id order by similarity desc, sample_id) = 1), "
            "spread as (select *, row_number() over (order by similarity desc, group_id) - 1 "
            "as place, count(*) over () as total from best) "
            "select url, byte_offset, samples.num_bytes, other_url, other_key, similarity, kind "
            "from spread join samples using (sample_id) join shards using (shard_id) "
            "where total <= $2 or place * $2 // total > (place - 1) * $2 // total "
            "order by place",
            [record.deduplication, num_pairs],
        ).fetchall()
    with other.catalog.reading() as connection:
        places = {
            (url, key): ImageLocation(url, offset, length)
            for url, key, offset, length in connection.execute(
                "select url, key, byte_offset, samples.num_bytes "
                "from samples join shards using (shard_id) "
                "where (url, key) in (select unnest($1), unnest($2))",
                [[row[3] for row in rows], [row[4] for row in rows]],
            ).fetchall()
        }
    images: list[CaptionedImage] = []
    for url, offset, length, other_url, other_key, similarity, kind in rows:
        caption = f"{similarity:.4f}" if kind == "near" else kind
        images.append(CaptionedImage(places[other_url, other_key], "other"))
        images.append(CaptionedImage(ImageLocation(url, offset, length), caption))
    return [
        (f"pairs {first // 2 + 1} …", images[first : first + MAX_IMAGES])
        for first in range(0, len(images), MAX_IMAGES)
    ]
