"""The charts of the report: arrays in, a PNG and an SVG out. They know no catalog."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMES = 40  # rows or columns of a heat map with names
_MAX_NAME_LENGTH = 24


def draw_histograms(path: Path, scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One small histogram per scoring, from counts [bins] and edges [bins + 1]."""
    num_columns = min(len(scores), 3)
    num_rows = -(-len(scores) // num_columns)
    size = (3.2 * num_columns, 2.2 * num_rows)
    with plotting.new_figure(path, *size, nrows=num_rows, ncols=num_columns, squeeze=False) as (
        _,
        grid,
    ):
        for axes in grid.ravel()[len(scores) :]:
            axes.set_axis_off()
        for axes, (name, (counts, edges)) in zip(grid.ravel(), scores.items(), strict=False):
            axes.stairs(counts, edges, fill=True, color=plotting.COLOURS[0])
            axes.set_title(name, loc="left", fontsize=9)
            axes.set_ylabel("samples", fontsize=8)
            axes.set_xlabel("score (high: keep)", fontsize=8)
            axes.tick_params(labelsize=7)


def draw_correlations(path: Path, names: list[str], matrix: np.ndarray) -> None:
    """Spearman's rank correlations [s, s], as Fig. 5A of the paper."""
    edge = 2.4 + 0.42 * len(names)
    with plotting.new_figure(path, edge + 0.8, edge) as (figure, axes):
        mesh = axes.imshow(matrix, cmap=plotting.DIVERGING_MAP, vmin=-1, vmax=1)
        _name_cells(axes, names, names)
        for row, column in np.argwhere(np.isfinite(matrix)):
            value = matrix[row, column]
            text = f"{round(value, 2) + 0:.2f}".replace("0.", ".")
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(mesh, ax=axes, label="Spearman's ρ", shrink=0.8)


def draw_overlap(path: Path, clusters: list[str], classes: list[str], shares: np.ndarray) -> None:
    """Which classes make up each cluster, shares [clusters, classes], as Fig. 6A of the paper."""
    width = max(2.6 + 0.22 * min(len(classes), MAX_NAMES), 4.5)
    height = max(2.0 + 0.16 * min(len(clusters), 60), 3)
    with plotting.new_figure(path, width, height) as (figure, axes):
        mesh = axes.imshow(
            shares,
            aspect="auto",
            cmap=plotting.SEQUENTIAL_MAP,
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        _name_cells(axes, clusters, classes)
        plotting.label_axes(axes, "class", "cluster")
        figure.colorbar(mesh, ax=axes, label="share of the cluster")


def draw_sizes(path: Path, counts: np.ndarray) -> None:
    """Sizes of clusters, the largest first."""
    with plotting.new_figure(path, 6, 2.6) as (_, axes):
        edges = np.arange(len(counts) + 1)
        axes.stairs(np.sort(counts)[::-1], edges, fill=True, color=plotting.COLOURS[2])
        plotting.label_axes(axes, "clusters, by size", "samples")


def draw_class_shares(path: Path, classes: list[str], shares: dict[str, np.ndarray]) -> None:
    """What each selection keeps of each class, shares [classes]."""
    with plotting.new_figure(path, max(6.5, 3.5 + 0.3 * len(classes)), 3) as (figure, axes):
        positions, width = np.arange(len(classes)), 0.8 / len(shares)
        for index, (name, values) in enumerate(shares.items()):
            shift = (index - (len(shares) - 1) / 2) * width
            colour = plotting.COLOURS[index % len(plotting.COLOURS)]
            axes.bar(positions + shift, values, width, color=colour, label=name)
        rotation = 90 if len(classes) > 12 else 0
        names = [_shorten(name) for name in classes]
        axes.set_xticks(positions, names, rotation=rotation, fontsize=8)
        axes.set_ylim(0, 1.02)
        plotting.label_axes(axes, "class", "share kept")
        figure.legend(fontsize=7, loc="outside right upper")


def draw_comparisons(
    path: Path, names: list[str], differences: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Paired differences in points with their 95% intervals, one line per selection."""
    styles = ((0.12, plotting.HARD), (-0.12, plotting.EASY))
    with plotting.new_figure(path, 7.5, 1.4 + 0.38 * len(names)) as (_, axes):
        positions = np.arange(len(names))[::-1]
        for (shift, colour), (name, (means, intervals)) in zip(
            styles, differences.items(), strict=False
        ):
            axes.errorbar(
                means,
                positions + shift,
                xerr=intervals,
                fmt="o",
                ms=4,
                capsize=2,
                color=colour,
                label=name,
            )
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(positions, names, fontsize=8)
        plotting.symlog_points(axes, "x")
        plotting.label_axes(axes, "points of test accuracy (95% interval)", "")
        axes.legend(fontsize=8)


def _name_cells(axes: "Axes", rows: list[str], columns: list[str]) -> None:
    for set_ticks, names, rotation in ((axes.set_yticks, rows, 0), (axes.set_xticks, columns, 90)):
        step = -(-len(names) // MAX_NAMES)
        labels = [_shorten(name) for name in names[::step]]
        set_ticks(range(0, len(names), step), labels, fontsize=7, rotation=rotation)
    axes.grid(False)


def _shorten(name: str) -> str:
    """What fits next to an axis, without characters that cannot be printed."""
    return "".join(
        character if character.isprintable() else "\ufffd" for character in name[:_MAX_NAME_LENGTH]
    )
