"""The sections of a report, each queried from a catalog and drawn."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.columns import NUMERIC_TYPES, list_columns
from curate.catalog.records import (
    AuditRecord,
    ClusteringRecord,
    ScoringRecord,
    SelectionRecord,
    ValidationRecord,
)
from curate.plotting import to_dark
from curate.stages.evidence.comparisons import FULL, RANDOM
from curate.stages.evidence.verdicts import read_verdicts
from curate.stages.report import charts
from curate.stages.report.answer import IntervalChart, make_chart
from curate.stages.report.images import MAX_CLASSES, to_json
from curate.stages.score.correlations import correlations
from curate.stages.staleness import find_stale

_MAX_ROWS = 200  # of a table; the rest is for `curate query`
_BINS = 40
_MAX_SELECTIONS = 6  # in the chart of classes, the newest
_MAX_CLUSTERS = 500  # in the chart of overlaps
_MAX_SCORINGS = 24  # in the charts of scores, the newest
_BASELINE_TITLES = {FULL: "Against everything", RANDOM: "Against random samples"}


@dataclass(frozen=True)
class Table:
    """A table of a section; `numeric` says which columns are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An SVG in base64, and what it shows in words."""

    alt: str
    data: str

    @property
    def dark_data(self) -> str:
        """The same SVG in the colours of a dark page."""
        return _to_base64(to_dark(base64.b64decode(self.data).decode()).encode())


@dataclass(frozen=True)
class Section:
    """A section of the page; `tiles` are (name, value)."""

    id: str
    title: str
    text: str = ""
    tiles: list[tuple[str, str]] = field(default_factory=list)
    intervals: list[IntervalChart] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Filters:
    """What the images of the page can be filtered and ordered by."""

    selections: list[str]
    scorings: list[str]
    numbers: list[str]  # columns of samples to filter and order by, as by scores
    columns: list[str]  # columns of samples to choose a value of


class SectionBuilder:
    """Builds the sections; those with nothing to show are None."""

    def __init__(self, catalog: Catalog, scoring: str | None) -> None:
        self.catalog, self.scoring = catalog, scoring
        self.clustering = next(reversed(catalog.list_names(ClusteringRecord)), None)

    def overview(self) -> Section:
        """What the corpus is."""
        ((num_shards, num_bytes, num_samples, num_labelled, num_classes),) = self._query(
            "select (select count(*) from shards), "
            "(select coalesce(sum(num_bytes), 0) from shards), "
            "count(*), count(label), count(distinct label) from samples"
        )
        ((num_failures,),) = self._query("select count(*) from failures")
        tiles = [
            ("shards", f"{num_shards:,}"),
            ("samples", f"{num_samples:,}"),
            ("labelled", f"{num_labelled:,}"),
            ("classes", f"{num_classes:,}"),
            ("bytes", f"{num_bytes / 1e6:,.1f} MB"),
            ("failures", f"{num_failures:,}"),
        ]
        embeddings = self._table(
            "select embedding, encoder, dim, label_source, "
            "sum(num_embedded) as embedded, sum(num_failed) as failed "
            "from embeddings left join embedded_shards using (embedding) group by all order by 1",
            title="Embeddings",
        )
        selections = self._table(
            "select selection, scoring, strategy, keep, balance, num_samples "
            "from selections order by run_id",
            title="Selections",
        )
        tables = [table for table in (embeddings, selections) if table]
        return Section("corpus", "Corpus", tiles=tiles, tables=tables)

    def validations(self) -> Section | None:
        """How selections compare with random samples and with everything."""
        table = self._table(
            "select * from pruned_vs_random order by validation, keep desc, selection, test"
        )
        if table is None:
            return None
        intervals = []
        validations = self.catalog.list_names(ValidationRecord)
        for validation in validations:
            verdicts = read_verdicts(self.catalog, validation)
            for baseline, title in _BASELINE_TITLES.items():
                chart = make_chart(
                    f"{validation}: {title.lower()}" if len(validations) > 1 else title,
                    [verdict for verdict in verdicts if verdict.comparison.baseline == baseline],
                )
                intervals += [chart] if chart else []
        return Section(
            "validation",
            "Evidence",
            "Models trained on each selection, on as many random samples and on everything, paired "
            "by seed and by test sample. The 95% intervals count the chance of the seeds and that "
            "of the test samples; a verdict is against the margin of the validation.",
            intervals=intervals,
            tables=[table],
        )

    def duplicates(self) -> Section | None:
        """The duplicates that were found, and labels that contradict each other."""
        table = self._table(
            "select deduplication, coalesce(against, '') as against, method, "
            "round(eps, 4) as eps, num_candidates, num_groups, num_exact, num_near, "
            "num_contradicting from deduplications order by run_id"
        )
        if table is None:
            return None
        return Section(
            "duplicates",
            "Duplicates",
            "Groups of samples with the same bytes, the same pixels, or near vectors (a cosine "
            "above 1 − eps), and how many of them go. A group with several labels contradicts "
            "itself: all but one are wrong.",
            tables=[table],
        )

    def scaling(self) -> Section | None:
        """How the error falls with the number of samples: what `curate fit` found and drew."""
        table = self._table(
            "select fit, form, round(exponent, 4) as exponent, round(exponent_low, 4) as low, "
            "round(exponent_high, 4) as high, round(asymptote, 4) as asymptote, "
            "round(exponent_vs_random, 4) as over_random, "
            'round(exponent_vs_random_interval, 4) as "±", num_points, seeds '
            "from fits order by fit"
        )
        if table is None:
            return None
        folder = self.catalog.path / "figures"
        paths = sorted(
            path
            for kind in ("scaling", "crossover", "metrics", "compute", "classes")
            for path in folder.glob(f"{kind}-*.svg")
        )
        return Section(
            "scaling",
            "Scaling",
            "error = asymptote + amplitude · samples^−exponent, with the exponent's 95% interval "
            "over seeds. Pareto: the least error over sizes of the corpus and fractions kept, "
            "chosen by other seeds than measured by.",
            figures=[Figure(path.stem, _to_base64(path.read_bytes())) for path in paths],
            tables=[table],
        )

    def scorings(self) -> Section | None:
        """How the scores are distributed, and how alike the scorings rank."""
        names = self.catalog.list_names(ScoringRecord)
        histograms = {
            name: histogram
            for name in names[-_MAX_SCORINGS:]
            if (histogram := self._histogram(name)) is not None
        }
        if not histograms:
            return None
        figures = [
            self._figure(
                "scores",
                f"Histograms of the scores: {', '.join(histograms)}",
                lambda path: charts.draw_histograms(path, histograms),
            )
        ]
        if len(names) > 1:
            matrix = correlations(self.catalog)
            figures.append(
                self._figure(
                    "correlations",
                    "Rank correlations of the scorings: the table of `curate query correlations`",
                    lambda path: charts.draw_correlations(path, *matrix),
                )
            )
        table = self._table(
            "select scoring, metric, source, num_samples, num_null, "
            "round(reliability, 3) as reliability from scorings order by run_id"
        )
        return Section(
            "scorings",
            "Scores",
            "High means worth keeping. Reliability is the rank correlation between two halves of a "
            "probe.",
            figures=figures,
            tables=[table] if table else [],
        )

    def classes(self) -> Section | None:
        """What each selection keeps of each class."""
        names = self.catalog.list_names(SelectionRecord)[-_MAX_SELECTIONS:]
        labels = self._largest_classes()
        if not labels or not names:
            return None
        rows = self._query(
            "select label, selection, kept_share from class_balance "
            "where label in (select unnest($1)) and selection in (select unnest($2))",
            labels,
            names,
        )
        share_of = {(label, selection): share for label, selection, share in rows}
        shares = {name: np.array([share_of[label, name] for label in labels]) for name in names}
        chart = self._figure(
            "classes",
            "Share that each selection keeps of each class, as in the table",
            lambda path: charts.draw_class_shares(path, labels, shares),
        )
        table = self._table(
            "select label, selection, num_samples, num_kept, round(kept_share, 4) as kept_share "
            "from class_balance order by kept_share, num_samples desc, label, selection",
            title="Classes, those that lose most first",
        )
        return Section("classes", "Classes", figures=[chart], tables=[table] if table else [])

    def audits(self) -> Section | None:
        """What `curate audit` found and drew: of each selection, the newest first."""
        table = self._table(
            "select audit, num_samples, num_groups, num_vanished as vanished, "
            "num_below_floor as below_floor, round(kl, 4) as kl, round(random_kl, 4) as random_kl, "
            "round(effective_groups, 2) as effective, "
            "round(random_effective_groups, 2) as random_effective, "
            "round(distance_mean, 4) as distance, "
            "round(random_distance_mean, 4) as random_distance, "
            "round(distance_99, 4) as distance_99, "
            "round(random_distance_99, 4) as random_distance_99, "
            "round(near_duplicate_share, 4) as near_duplicates, "
            "round(random_near_duplicate_share, 4) as random_near_duplicates "
            "from audits order by run_id desc"
        )
        if table is None:
            return None
        groups = self._table(
            "select audit, group_name, audit_groups.num_candidates as num_samples, num_kept, "
            "round(num_kept / audit_groups.num_candidates, 4) as share, "
            "round(random_num_kept / audit_groups.num_candidates, 4) as random_share, "
            "if(is_below_floor, 'below the floor', '') as remark "
            "from audit_groups join audits using (audit) "
            "order by run_id desc, num_kept / greatest(random_num_kept, 1e-9)",
            title="Groups, those that keep least against random first",
        )
        contributions = self._table(
            "select audit, population, audit_contributions.num_samples, "
            "round(similarity, 4) as similarity, "
            "round(effective_share, 4) as effective_share, "
            "round(negative_share, 4) as negative_share from audit_contributions "
            "join audits using (audit) order by run_id desc, audit_contributions.rowid",
            title="How even contributions are",
        )
        paths = [
            self.catalog.path / "figures" / f"audit-{name}{suffix}.svg"
            for name in self.catalog.list_names(AuditRecord)[: -_MAX_SELECTIONS - 1 : -1]
            for suffix in ("", "-contributions")
        ]
        figures = [
            Figure(path.stem, _to_base64(path.read_bytes())) for path in paths if path.is_file()
        ]
        return Section(
            "audits",
            "What is lost",
            "What a selection leaves of each group beside random selections of the same size and "
            "balance. KL divergence from the groups of all candidates, in nats; effective number "
            "of groups, exp of their entropy; cosine distance from dropped samples to the nearest "
            "kept one; share of the kept samples that have a near duplicate among the kept ones.",
            figures=figures,
            tables=[each for each in (table, groups, contributions) if each],
        )

    def _largest_classes(self) -> list[str]:
        """The labels of most samples, as many as a chart names; none where they are no classes."""
        ((num_classes,),) = self._query("select approx_count_distinct(label) from samples")
        if num_classes > MAX_CLASSES:
            return []
        rows = self._query(
            "select label from samples where label is not null group by label "
            "order by count(*) desc, label limit ?",
            charts.MAX_NAMES,
        )
        return [label for (label,) in rows]

    def clusters(self) -> Section | None:
        """The sizes of the clusters, and the classes in each."""
        if self.clustering is None:
            return None
        sizes = dict(
            self._query(
                "select cluster_id, count(*) from assignments where clustering = ? group by 1",
                self.clustering,
            )
        )
        totals = np.array(list(sizes.values()), float)
        figures = [
            self._figure(
                "clusters",
                f"Sizes of the {len(sizes):,} clusters, the largest first",
                lambda path: charts.draw_sizes(path, totals),
            )
        ]
        labels = self._largest_classes()
        if len(labels) > 1:
            names, shares = self._class_shares(sizes, labels)
            figures.append(
                self._figure(
                    "overlap",
                    "Share of each class in each cluster: the table of "
                    "`curate query cluster_classes`",
                    lambda path: charts.draw_overlap(path, names, labels, shares),
                )
            )
        table = self._table(
            "select cluster_id, num_samples, round(mean_distance, 4) as mean_distance, "
            "round(max_distance, 4) as max_distance from cluster_sizes where clustering = ? "
            "order by num_samples desc",
            self.clustering,
        )
        title = f"Clusters ({self.clustering})"
        return Section("clusters", title, figures=figures, tables=[table] if table else [])

    def _class_shares(
        self, sizes: dict[int, int], labels: list[str]
    ) -> tuple[list[str], np.ndarray]:
        """Names of clusters, the largest at most 500, and shares of classes [clusters, classes].

        Clusters with the same leading class are next to each other, so that blocks can be seen.
        """
        cluster_ids = sorted(sizes, key=lambda cluster_id: -sizes[cluster_id])[:_MAX_CLUSTERS]
        rows = self._query(
            "select cluster_id, label, count(*) "
            "from assignments join samples using (sample_id) where clustering = ? "
            "and label in (select unnest(?)) and cluster_id in (select unnest(?)) group by all",
            self.clustering,
            labels,
            cluster_ids,
        )
        row_index = {cluster_id: index for index, cluster_id in enumerate(cluster_ids)}
        column_index = {label: index for index, label in enumerate(labels)}
        shares = np.zeros((len(cluster_ids), len(labels)))
        for cluster_id, label, count in rows:
            shares[row_index[cluster_id], column_index[label]] = count / sizes[cluster_id]
        order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
        return [str(cluster_ids[index]) for index in order], shares[order]

    def filters(self) -> Filters:
        """What the images can be filtered and ordered by, beside classes and clusters."""
        names = [self.scoring, *self.catalog.list_names(ScoringRecord)]
        with self.catalog.reading() as connection:
            columns = list_columns(connection)
        return Filters(
            selections=self.catalog.list_names(SelectionRecord),
            scorings=list(dict.fromkeys(name for name in names if name is not None)),
            numbers=[column.column_name for column in columns if column.type in NUMERIC_TYPES],
            columns=[column.column_name for column in columns],
        )

    def lineage(self) -> Section:
        """Which set was made from which, by which version, when."""
        table = self._table(
            "select kind, name, made_from, version, left(git_commit, 10) as commit, "
            "started_at, finished_at, status from lineage order by run_id"
        )
        if table is None:
            return Section("lineage", "Lineage")
        stale = find_stale(self.catalog)
        table.columns.append("out_of_date")
        table.numeric.append(False)
        for row in table.rows:
            row.append(stale.get((row[0], row[1]), ""))
        text = ""
        if stale:
            text = f"{len(stale)} sets are out of date: the last column says why."
        return Section("lineage", "Lineage", text, tables=[table])

    def _query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.catalog.reading() as connection:
            return connection.execute(sql, list(parameters)).fetchall()

    def _table(self, sql: str, *parameters: Any, title: str = "") -> Table | None:
        """The answer as a table, its first rows only; None where it is empty."""
        with self.catalog.reading() as connection:
            cursor = connection.execute(sql, list(parameters))
            columns = [column[0] for column in cursor.description or []]
            rows = cursor.fetchmany(_MAX_ROWS + 1)
        if not rows:
            return None
        numeric = [
            all(_is_number_or_none(value) for value in values) for values in zip(*rows, strict=True)
        ]
        formatted = [
            [_format_cell(name, value) for name, value in zip(columns, row, strict=True)]
            for row in rows[:_MAX_ROWS]
        ]
        note = ""
        if len(rows) > _MAX_ROWS:
            note = f"The first {_MAX_ROWS} rows; `curate query` gives all."
        return Table(title, columns, formatted, numeric, note)

    def _figure(self, name: str, alt: str, draw: Callable[[Path], None]) -> Figure:
        """Draw figures/report-NAME, and return it for the page."""
        path = self.catalog.path / "figures" / f"report-{name}"
        draw(path)
        return Figure(alt, _to_base64(path.with_name(f"{path.name}.svg").read_bytes()))

    def _histogram(self, scoring: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Counts [bins] and edges [bins + 1]; None where no sample has a score."""
        ((low, high),) = self._query(
            "select min(score), max(score) from scores where scoring = ?", scoring
        )
        if low is None:
            return None
        width = (high - low) / _BINS or 1.0
        rows = self._query(
            "select least(floor((score - $2) / $3), $4)::int as bin, count(*) from scores "
            "where scoring = $1 and score is not null group by bin",
            scoring,
            low,
            width,
            _BINS - 1,
        )
        counts = np.zeros(_BINS)
        for bin_index, count in rows:
            counts[bin_index] = count
        return counts, low + width * np.arange(_BINS + 1)


def _is_number_or_none(value: Any) -> bool:
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _format_cell(column: str, value: Any) -> str:
    """A value of a table as text; counts with commas, ids as they are."""
    if isinstance(value, int) and not isinstance(value, bool) and not column.endswith("_id"):
        return f"{value:,}"
    plain = to_json(value)
    return "" if plain is None else str(plain)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
