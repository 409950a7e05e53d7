"""The sections of a report, each asked of a catalog and drawn."""

import base64
import io
from typing import Any

import numpy as np

from curate import charts, images, resources
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.places import image_at
from curate.progress import bar, log
from curate.stages.compare import correlations
from curate.stages.validate import verdicts

_ROWS = 200  # of a table; the rest is for `curate query`
_BINS = 40


class Page:
    """The sections of a report, each a dict for the template; None where there is nothing to show."""

    def __init__(self, catalog: Catalog, scoring: str | None) -> None:
        self.catalog, self.scoring = catalog, scoring
        self.clustering = next(reversed(catalog.names("clustering")), None)

    def _ask(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.catalog.reading() as connection:
            return connection.execute(sql, list(parameters)).fetchall()

    def _table(self, sql: str, *parameters: Any, title: str = "") -> dict[str, Any] | None:
        """The answer as a table, its first rows only; None where it is empty."""
        with self.catalog.reading() as connection:
            cursor = connection.execute(sql, list(parameters))
            columns = [column[0] for column in cursor.description or []]
            rows = cursor.fetchmany(_ROWS + 1)
        if not rows:
            return None
        numeric = [all(isinstance(row[place], int | float | None) and not isinstance(row[place], bool) for row in rows)
                   for place in range(len(columns))]  # fmt: skip
        shown = [[_told(name, value) for name, value in zip(columns, row, strict=True)] for row in rows[:_ROWS]]
        note = f"The first {_ROWS} rows; `curate query` gives all." if len(rows) > _ROWS else ""
        return {"title": title, "columns": columns, "rows": shown, "numeric": numeric, "note": note}

    def _figure(self, name: str, alt: str, draw: Any, *arguments: Any) -> dict[str, str]:
        path = self.catalog.path / "figures" / f"report-{name}"
        draw(path, *arguments)
        data = base64.b64encode(path.with_name(f"{path.name}.svg").read_bytes()).decode("ascii")
        return {"alt": alt, "data": data}

    def overview(self) -> dict[str, Any]:
        """What the corpus is."""
        ((shards, size, samples, labelled, classes),) = self._ask(
            "select (select count(*) from shards), (select coalesce(sum(num_bytes), 0) from shards), count(*), count(label), "
            "count(distinct label) from samples"
        )
        ((failed,),) = self._ask("select count(*) from failures")
        tiles = [("shards", f"{shards:,}"), ("samples", f"{samples:,}"), ("labelled", f"{labelled:,}"),
                 ("classes", f"{classes:,}"), ("bytes", f"{size / 1e6:,.1f} MB"), ("failures", f"{failed:,}")]  # fmt: skip
        embeddings = (
            "select embedding, encoder, dim, label_source, sum(num_embedded) as embedded, sum(num_failed) as failed "
            "from embeddings left join embedded_shards using (embedding) group by all order by 1"
        )
        selections = "select selection, scoring, strategy, keep, balance, num_samples from selections order by run_id"
        tables = [self._table(embeddings, title="Embeddings"), self._table(selections, title="Selections")]
        return {"id": "corpus", "title": "Corpus", "tiles": tiles, "tables": [table for table in tables if table]}

    def validations(self) -> dict[str, Any] | None:
        """How selections compare with random samples and with everything."""
        rows = self._ask(
            "select validation, selection, over_random, over_random_interval, over_full, over_full_interval "
            "from pruned_vs_random where over_full_interval is not null order by validation, keep desc, selection"
        )
        if not rows:
            return None
        several = len({row[0] for row in rows}) > 1
        names = [f"{row[0]}: {row[1]}" if several else row[1] for row in rows]
        columns = np.array([row[2:] for row in rows], float).T
        differences = {"pruned − random": (columns[0], columns[1]), "pruned − everything": (columns[2], columns[3])}
        lines = [line._replace(text=f"{name}: {line.text}") if several else line
                 for name in self.catalog.names("validation") for line in verdicts(self.catalog, name)]  # fmt: skip
        return {
            "id": "validation", "title": "Pruned against random", "verdicts": lines,
            "text": "Small models trained on each selection, on as many random samples and on everything; paired by seed.",
            "figures": [self._figure("validation", "differences with intervals", charts.comparisons, names, differences)],
            "tables": [self._table(resources.sql("queries/pruned_vs_random"))],
        }  # fmt: skip

    def scaling(self) -> dict[str, Any] | None:
        """How the error falls with the number of samples: what `curate fit` found and drew."""
        table = self._table(
            "select fit, form, round(exponent, 4) as exponent, round(exponent_low, 4) as low, round(exponent_high, 4) as high, "
            "round(asymptote, 4) as asymptote, num_points, seeds from fits order by fit"
        )
        if table is None:
            return None
        drawn = sorted(
            path for kind in ("scaling", "crossover") for path in (self.catalog.path / "figures").glob(f"{kind}-*.svg")
        )
        return {
            "id": "scaling", "title": "Scaling", "tables": [table],
            "figures": [{"alt": path.stem, "data": base64.b64encode(path.read_bytes()).decode("ascii")} for path in drawn],
            "text": "error = asymptote + amplitude · samples^−exponent, with the exponent's 95% interval over seeds. Pareto: "
                    "the least error over sizes of the corpus and fractions kept, chosen by other seeds than measured by.",
        }  # fmt: skip

    def scorings(self) -> dict[str, Any] | None:
        """How the scores are spread, and how alike the scorings rank."""
        names = self.catalog.names("scoring")
        histograms = {name: found for name in names if (found := self._histogram(name))}
        if not histograms:
            return None
        drawn = [self._figure("scores", "histograms of the scores", charts.histograms, histograms)]
        if len(names) > 1:
            drawn.append(self._figure("correlations", "rank correlations of the scorings", charts.correlations,
                                      *correlations(self.catalog)))  # fmt: skip
        columns = "scoring, metric, source, num_samples, num_null, round(reliability, 3) as reliability"
        return {
            "id": "scorings", "title": "Scores", "figures": drawn,
            "text": "High means worth keeping. Reliability is the rank correlation between two halves of a probe.",
            "tables": [self._table(f"select {columns} from scorings order by run_id")],
        }  # fmt: skip

    def _histogram(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        ((low, high),) = self._ask("select min(score), max(score) from scores where scoring = ?", name)
        if low is None:
            return None
        width = (high - low) / _BINS or 1.0
        rows = self._ask("select least(floor((score - $2) / $3), $4)::int as bin, count(*) from scores "
                         "where scoring = $1 and score is not null group by bin", name, low, width, _BINS - 1)  # fmt: skip
        counts = np.zeros(_BINS)
        for place, count in rows:
            counts[place] = count
        return counts, low + width * np.arange(_BINS + 1)

    def classes(self) -> dict[str, Any] | None:
        """What each selection keeps of each class."""
        names = self.catalog.names("selection")[-6:]
        rows = self._ask("select label, selection, kept_share from class_balance where label is not null "
                         "and selection in (select unnest($1)) order by num_samples desc, label", names)  # fmt: skip
        labels = list(dict.fromkeys(row[0] for row in rows))
        if not labels:
            return None
        shares = {name: np.array([row[2] for row in rows if row[1] == name][: charts.MOST]) for name in names}
        return {
            "id": "classes", "title": "Classes",
            "figures": [self._figure("classes", "share kept of each class", charts.kept, labels[: charts.MOST], shares)],
            "tables": [self._table("select label, selection, num_samples, num_kept, round(kept_share, 4) as kept_share "
                                   "from class_balance order by selection, label")],
        }  # fmt: skip

    def clusters(self) -> dict[str, Any] | None:
        """The sizes of the clusters, and the classes in each."""
        if self.clustering is None:
            return None
        rows = self._ask("select cluster_id, coalesce(label, ''), count(*) from assignments join samples using (sample_id) "
                         "where clustering = ? group by all", self.clustering)  # fmt: skip
        known = sorted({row[0] for row in rows})
        labels = sorted({row[1] for row in rows})
        counts = np.zeros((len(known), len(labels)))
        for cluster, label, count in rows:
            counts[known.index(cluster), labels.index(label)] = count
        totals = counts.sum(axis=1)
        drawn = [self._figure("clusters", "sizes of the clusters", charts.sizes, totals)]
        if len(labels) > 1:
            # Clusters beside others of the same leading class, so that blocks can be seen.
            order = np.lexsort((-counts.max(axis=1) / totals, counts.argmax(axis=1)))[:500]
            shares = counts[order] / totals[order, None]
            drawn.append(self._figure("overlap", "classes in each cluster", charts.overlap,
                                      [str(known[place]) for place in order], labels, shares))  # fmt: skip
        table = self._table("select cluster_id, num_samples, round(mean_distance, 4) as mean_distance, "
                            "round(max_distance, 4) as max_distance from cluster_sizes where clustering = ? "
                            "order by num_samples desc", self.clustering)  # fmt: skip
        return {"id": "clusters", "title": f"Clusters ({self.clustering})", "figures": drawn, "tables": [table]}

    def samples(self, most: int, size: int) -> list[dict[str, Any]]:
        """The images to show, each with its row, its cluster and the selections that keep it."""
        ((classes, clusters),) = self._ask(
            "select (select count(distinct label) from samples), "
            "(select count(distinct cluster_id) from assignments where clustering = ?)", self.clustering,
        )  # fmt: skip
        with self.catalog.reading() as connection:
            parameters = {"scoring": self.scoring, "clustering": self.clustering, "most": most,
                          "of_class": max(most // (4 * max(classes, 1)), 2),
                          "of_cluster": max(most // (4 * max(clusters, 1)), 1)}  # fmt: skip
            ranks = dict(connection.execute(resources.sql("stages/thumbnails"), parameters).fetchall())
            ids = list(ranks)
            cursor = connection.execute(
                "select * from sample_scores where sample_id in (select unnest(?)) order by sample_id", [ids]
            )
            columns = [column[0] for column in cursor.description or []]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
            kept: dict[int, list[str]] = {}
            for sample_id, selection in connection.execute(
                "select sample_id, selection from members where sample_id in (select unnest(?))", [ids]
            ).fetchall():
                kept.setdefault(sample_id, []).append(selection)
        how = images.Preprocessing(size, size, resize="longest", fill=(255, 255, 255))
        shown, problems = [], []
        with bar("thumbnails", len(rows)) as advance:
            for row in rows:
                try:
                    pixels = image_at(row["url"], row["byte_offset"], row["num_bytes"], how)
                except CurateError as error:
                    problems.append(str(error))
                    continue
                shown.append({"image": _jpeg(pixels), "row": {name: _plain(value) for name, value in row.items()},
                              "cluster": row.get(self.clustering) if self.clustering else None,
                              "ranks": ranks[row["sample_id"]], "kept": kept.get(row["sample_id"], [])})  # fmt: skip
                advance(1, 1)
        if problems:
            log.warning("%d images are left out; the first: %s", len(problems), problems[0])
        return shown

    def gallery(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The grid of images, and what it can be filtered by."""
        total = self._ask("select count(*) from samples")[0][0]
        names = self.catalog.names("scoring")
        ordered = [name for name in (self.scoring, *names) if name is not None]
        return {
            "id": "images", "title": "Images",
            "gallery": {
                "labels": sorted({str(one["row"]["label"]) for one in samples if one["row"]["label"] is not None}),
                "clusters": sorted({one["cluster"] for one in samples if one["cluster"] is not None}),
                "selections": self.catalog.names("selection"), "scorings": list(dict.fromkeys(ordered)),
                "scoring": self.scoring, "shown": f"{len(samples):,}", "total": f"{total:,}",
            },
        }  # fmt: skip

    def lineage(self) -> dict[str, Any]:
        """Which set was made from which, by which version, when."""
        table = self._table(
            "select kind, name, made_from, version, left(git_commit, 10) as commit, started_at, finished_at, status, "
            "out_of_date from lineage order by run_id"
        )
        return {"id": "lineage", "title": "Lineage", "tables": [table] if table else []}


def _plain(value: Any) -> Any:
    """A value for the page: short numbers, dates as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _told(column: str, value: Any) -> str:
    """A value of a table as text; counts with commas, ids as they are."""
    if isinstance(value, int) and not isinstance(value, bool) and not column.endswith("_id"):
        return f"{value:,}"
    plain = _plain(value)
    return "" if plain is None else str(plain)


def _jpeg(pixels: np.ndarray) -> str:
    """uint8 [size, size, 3] as a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
