"""The charts of the report: arrays in, a PNG and an SVG out. They know no catalog.

None is much wider than 5 inches, so that its text can be read on a telephone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate import plotting
from curate.formatting import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMES = 40  # rows or columns of a heat map with names
_MAX_NAME_LENGTH = 24
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_histograms(path: Path, scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One small histogram per scoring, from counts [bins] and edges [bins + 1]."""
    num_columns = min(len(scores), 2)
    num_rows = -(-len(scores) // num_columns)
    size = (2.5 * num_columns, 1.9 * num_rows)
    with plotting.new_figure(path, *size, nrows=num_rows, ncols=num_columns, squeeze=False) as (
        _,
        grid,
    ):
        for axes in grid.ravel()[len(scores) :]:
            axes.set_axis_off()
        for axes, (name, (counts, edges)) in zip(grid.ravel(), scores.items(), strict=False):
            axes.stairs(counts, edges, fill=True, color=plotting.COLOURS[0])
            axes.set_title(_shorten(name), loc="left", fontsize=9)
            axes.set_ylabel("samples", fontsize=8)
            axes.set_xlabel("score (high: keep)", fontsize=8)
            axes.tick_params(labelsize=7)


def draw_correlations(path: Path, names: list[str], matrix: np.ndarray) -> None:
    """Spearman's rank correlations [s, s], as Fig. 5A of the paper."""
    edge = 2.4 + (0.42 if len(names) <= 8 else 0.26) * len(names)
    with plotting.new_figure(path, edge + 0.8, edge) as (figure, axes):
        mesh = axes.imshow(matrix, cmap=plotting.DIVERGING_MAP, vmin=-1, vmax=1)
        _name_cells(axes, names, names)
        for row, column in np.argwhere(np.isfinite(matrix)):
            value = matrix[row, column]
            text = f"{round(value, 2) + 0:.2f}".replace("0.", ".")
            colour = plotting.ON_DARK if abs(value) > 0.6 else plotting.ON_LIGHT
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(mesh, ax=axes, label="Spearman's ρ", shrink=0.8)


def draw_overlap(path: Path, clusters: list[str], classes: list[str], shares: np.ndarray) -> None:
    """Which classes make up each cluster, shares [clusters, classes], as Fig. 6A of the paper."""
    width = min(max(2.6 + 0.14 * len(classes), 4.5), 6)
    height = min(max(2.0 + 0.16 * len(clusters), 3), 8)
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
    """What each selection keeps of each class, shares [classes]: a row a class."""
    height = 1.2 + 0.2 * len(classes) + 0.2 * len(shares)
    with plotting.new_figure(path, 5, height) as (figure, axes):
        positions = np.arange(len(classes))[::-1]
        for index, (name, values) in enumerate(shares.items()):
            axes.plot(
                values,
                positions,
                _MARKERS[index % len(_MARKERS)],
                color=plotting.COLOURS[index % len(plotting.COLOURS)],
                label=_shorten(name, 48),
                ms=5,
                alpha=0.8,
            )
        axes.set_yticks(positions, [_shorten(name) for name in classes], fontsize=8)
        axes.set_xlim(-0.02, 1.02)
        plotting.label_axes(axes, "share kept", "class")
        figure.legend(fontsize=8, loc="outside lower left")


def _name_cells(axes: "Axes", rows: list[str], columns: list[str]) -> None:
    for set_ticks, names, rotation in ((axes.set_yticks, rows, 0), (axes.set_xticks, columns, 90)):
        step = -(-len(names) // MAX_NAMES)
        labels = [_shorten(name) for name in names[::step]]
        set_ticks(range(0, len(names), step), labels, fontsize=7, rotation=rotation)
    axes.grid(False)


def _shorten(name: str, longest: int = _MAX_NAME_LENGTH) -> str:
    """What fits next to an axis, without characters that cannot be printed."""
    return "".join(
        character if character.isprintable() else "\ufffd" for character in shorten(name, longest)
    )
