"""The sections of a report, each queried from a catalog and drawn."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from curate.catalog.catalog import Catalog
from curate.catalog.columns import NUMERIC_TYPES, list_columns
from curate.catalog.records import (
    AuditRecord,
    ClusteringRecord,
    ScoringRecord,
    SelectionRecord,
    ValidationRecord,
)
from curate.catalog.samples import image_member
from curate.errors import CurateError
from curate.formatting import shorten
from curate.package_data import read_sql
from curate.progress import log, progress_bar
from curate.stages.evidence.verdicts import Verdict, read_verdicts
from curate.stages.gallery import ImageLocation, read_thumbnail
from curate.stages.report import charts
from curate.stages.score.correlations import correlations
from curate.stages.staleness import find_stale

_MAX_ROWS = 200  # of a table; the rest is for `curate query`
_MAX_TEXT = 500  # characters of a caption or a label
_BINS = 40
_MAX_SELECTIONS = 6  # in the chart of classes, the newest
_MAX_CLUSTERS = 500  # in the chart of overlaps
_JPEG_QUALITY = 80


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


@dataclass(frozen=True)
class GalleryFilters:
    """What the images of the report can be filtered and ordered by."""

    labels: list[str]
    clusters: list[int]
    selections: list[str]
    scorings: list[str]
    scoring: str | None
    numbers: list[str]  # columns of samples to filter and order by, as by scores
    columns: list[str]  # columns of samples to choose a value of
    shown: str
    total: str


@dataclass(frozen=True)
class Section:
    """A section of the page; `tiles` are (name, value)."""

    id: str
    title: str
    text: str = ""
    tiles: list[tuple[str, str]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    gallery: GalleryFilters | None = None


@dataclass(frozen=True)
class ReportImage:
    """An image with its row of `sample_scores`, its ranks, and the selections that keep it."""

    image: str  # a data URL
    row: dict[str, Any]
    cluster: int | None
    ranks: dict[str, Any] | None
    kept: list[str]


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
        rows = self._query(
            "select validation, selection, test, delta_vs_random, delta_vs_random_interval, "
            "delta_vs_full, delta_vs_full_interval "
            "from pruned_vs_random where delta_vs_full_interval is not null "
            "order by validation, keep desc, selection, test"
        )
        if not rows:
            return None
        has_several = len({row[0] for row in rows}) > 1
        has_several_tests = len({(row[0], row[2]) for row in rows}) > len({row[0] for row in rows})
        names = [
            (f"{validation}: " if has_several else "")
            + selection
            + (f" on {test}" if has_several_tests else "")
            for validation, selection, test, *_ in rows
        ]
        columns = np.array([row[3:] for row in rows], float).T
        differences = {
            "pruned − random": (columns[0], columns[1]),
            "pruned − everything": (columns[2], columns[3]),
        }
        verdicts = []
        for validation in self.catalog.list_names(ValidationRecord):
            for verdict in read_verdicts(self.catalog, validation):
                text = f"{validation}: {verdict.text}" if has_several else verdict.text
                verdicts.append(verdict._replace(text=text))
        chart = self._figure(
            "validation",
            "differences with intervals",
            lambda path: charts.draw_comparisons(path, names, differences),
        )
        table = self._table(read_sql("queries/pruned_vs_random"))
        return Section(
            "validation",
            "Pruned against random",
            "Models trained on each selection, on as many random samples and on everything, paired "
            "by seed and by test sample. The 95% intervals count the chance of the seeds and that "
            "of the test samples; a verdict is against the margin of the validation.",
            verdicts=verdicts,
            figures=[chart],
            tables=[table] if table else [],
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
            name: histogram for name in names if (histogram := self._histogram(name)) is not None
        }
        if not histograms:
            return None
        figures = [
            self._figure(
                "scores",
                "histograms of the scores",
                lambda path: charts.draw_histograms(path, histograms),
            )
        ]
        if len(names) > 1:
            matrix = correlations(self.catalog)
            figures.append(
                self._figure(
                    "correlations",
                    "rank correlations of the scorings",
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
        rows = self._query(
            "select label, selection, kept_share from class_balance where label is not null "
            "and selection in (select unnest($1)) order by num_samples desc, label",
            names,
        )
        labels = list(dict.fromkeys(label for label, _, _ in rows))[: charts.MAX_NAMES]
        if not labels:
            return None
        shares = {
            name: np.array([share for _, selection, share in rows if selection == name])
            for name in names
        }
        shares = {name: values[: charts.MAX_NAMES] for name, values in shares.items()}
        chart = self._figure(
            "classes",
            "share kept of each class",
            lambda path: charts.draw_class_shares(path, labels, shares),
        )
        table = self._table(
            "select label, selection, num_samples, num_kept, round(kept_share, 4) as kept_share "
            "from class_balance order by selection, label"
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

    def clusters(self) -> Section | None:
        """The sizes of the clusters, and the classes in each."""
        if self.clustering is None:
            return None
        rows = self._query(
            "select cluster_id, coalesce(label, ''), count(*) "
            "from assignments join samples using (sample_id) where clustering = ? group by all",
            self.clustering,
        )
        cluster_ids = sorted({row[0] for row in rows})
        labels = sorted({row[1] for row in rows})
        row_index = {cluster_id: index for index, cluster_id in enumerate(cluster_ids)}
        column_index = {label: index for index, label in enumerate(labels)}
        counts = np.zeros((len(cluster_ids), len(labels)))
        for cluster_id, label, count in rows:
            counts[row_index[cluster_id], column_index[label]] = count
        totals = counts.sum(axis=1)
        figures = [
            self._figure(
                "clusters", "sizes of the clusters", lambda path: charts.draw_sizes(path, totals)
            )
        ]
        if len(labels) > 1:
            # Clusters with the same leading class next to each other, so that blocks can be seen.
            order = np.lexsort((-counts.max(axis=1) / totals, counts.argmax(axis=1)))
            order = order[:_MAX_CLUSTERS]
            shares = counts[order] / totals[order, None]
            names = [str(cluster_ids[index]) for index in order]
            figures.append(
                self._figure(
                    "overlap",
                    "classes in each cluster",
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

    def gallery(self, images: list[ReportImage]) -> Section:
        """The grid of images, and what it can be filtered by."""
        ((total,),) = self._query("select count(*) from samples")
        names = [self.scoring, *self.catalog.list_names(ScoringRecord)]
        with self.catalog.reading() as connection:
            columns = list_columns(connection)
        labels = {image.row["label"] for image in images} - {None}
        clusters = {image.cluster for image in images if image.cluster is not None}
        filters = GalleryFilters(
            labels=sorted(map(str, labels)),
            clusters=sorted(clusters),
            selections=self.catalog.list_names(SelectionRecord),
            scorings=list(dict.fromkeys(name for name in names if name is not None)),
            scoring=self.scoring,
            numbers=[column.column_name for column in columns if column.type in NUMERIC_TYPES],
            columns=[column.column_name for column in columns],
            shown=f"{len(images):,}",
            total=f"{total:,}",
        )
        return Section("images", "Images", gallery=filters)

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

    def images(self, limit: int, size: int) -> list[ReportImage]:
        """The images to show, of `size` pixels."""
        ((num_classes, num_clusters),) = self._query(
            "select (select count(distinct label) from samples), "
            "(select count(distinct cluster_id) from assignments where clustering = ?)",
            self.clustering,
        )
        parameters = {
            "scoring": self.scoring,
            "clustering": self.clustering,
            "most": limit,
            "of_class": max(limit // (4 * max(num_classes, 1)), 2),
            "of_cluster": max(limit // (4 * max(num_clusters, 1)), 1),
        }
        with self.catalog.reading() as connection:
            ranks = dict(connection.execute(read_sql("stages/thumbnails"), parameters).fetchall())
            sample_ids = list(ranks)
            cursor = connection.execute(
                "select * from sample_scores where sample_id in (select unnest(?)) "
                "order by sample_id",
                [sample_ids],
            )
            columns = [column[0] for column in cursor.description or []]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
            members = connection.execute(
                "select sample_id, selection from members where sample_id in (select unnest(?))",
                [sample_ids],
            ).fetchall()
        selections: dict[int, list[str]] = {}
        for sample_id, selection in members:
            selections.setdefault(sample_id, []).append(selection)
        images, problems, image = [], [], image_member(self.catalog)
        with progress_bar("thumbnails", len(rows)) as advance:
            for row in rows:
                location = ImageLocation(row["url"], row["byte_offset"], row["num_bytes"], image)
                try:
                    thumbnail = read_thumbnail(location, size)
                except CurateError as error:
                    problems.append(str(error))
                    continue
                sample_id = row["sample_id"]
                images.append(
                    ReportImage(
                        image=_to_data_url(thumbnail),
                        row={name: _to_json(value) for name, value in row.items()},
                        cluster=row.get(self.clustering) if self.clustering else None,
                        ranks=ranks[sample_id],
                        kept=selections.get(sample_id, []),
                    )
                )
                advance(1, 1)
        if problems:
            log.warning("%d images are left out; the first: %s", len(problems), problems[0])
        return images

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


def _to_json(value: Any) -> Any:
    """A value for the page: short numbers, dates as text, the beginning of a long text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    is_plain = value is None or isinstance(value, bool | int)
    return value if is_plain else shorten(str(value), _MAX_TEXT)


def _format_cell(column: str, value: Any) -> str:
    """A value of a table as text; counts with commas, ids as they are."""
    if isinstance(value, int) and not isinstance(value, bool) and not column.endswith("_id"):
        return f"{value:,}"
    plain = _to_json(value)
    return "" if plain is None else str(plain)


def _to_data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{_to_base64(file.getvalue())}"


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
