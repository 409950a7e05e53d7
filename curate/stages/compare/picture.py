"""The picture of a comparison: overlaps, and for each pair what one keeps and the other drops."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate import plotting
from curate.formatting import printable
from curate.progress import log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curate.stages.compare.stage import GroupOfPair, SelectionComparison

_MAX_PAIRS, _MAX_GROUPS, _MAX_NAME = 6, 20, 28
_PANELS_PER_ROW = 2


def draw_comparison(path: Path, comparison: "SelectionComparison") -> None:
    """Draw `path`.png and `path`.svg: matrices of overlap and of rank correlation; then the pairs.

    Each of the first pairs has a panel: to the left what only the one keeps of each group, to the
    right what only the other keeps.
    """
    shown = comparison.pairs[:_MAX_PAIRS]
    if len(comparison.pairs) > len(shown):
        log.info("the picture has %d of %d pairs", len(shown), len(comparison.pairs))
    panels = {
        (pair.a, pair.b): [
            group for group in comparison.groups if (group.a, group.b) == (pair.a, pair.b)
        ]
        for pair in shown
    }
    num_groups = max(min(len(groups), _MAX_GROUPS) for groups in panels.values())
    num_rows = 1 + -(-len(panels) // _PANELS_PER_ROW)
    matrix_height = 1.9 + 0.35 * len(comparison.selections)
    heights = [matrix_height, *[1.3 + 0.19 * num_groups] * (num_rows - 1)]
    with plotting.new_figure(
        path,
        11,
        sum(heights),
        nrows=num_rows,
        ncols=_PANELS_PER_ROW,
        squeeze=False,
        height_ratios=heights,
    ) as (_, grid):
        names, (overlaps, ranks) = comparison.selections, _matrices(comparison)
        _draw_matrix(grid[0, 0], names, overlaps, "overlap (Jaccard)", vmin=0)
        _draw_matrix(grid[0, 1], names, ranks, "Spearman's ρ of the scorings", vmin=-1)
        free = list(grid[1:].ravel())
        for (a, b), groups in panels.items():
            _draw_pair(free.pop(0), a, b, groups, comparison.grouped_by)
        for axes in free:
            axes.set_axis_off()


def _matrices(comparison: "SelectionComparison") -> tuple[np.ndarray, np.ndarray]:
    """Overlaps and rank correlations, [s, s]; NaN where there is no correlation."""
    index = {name: number for number, name in enumerate(comparison.selections)}
    overlaps = np.eye(len(index))
    ranks = np.full((len(index), len(index)), np.nan)
    np.fill_diagonal(ranks, 1)
    for pair in comparison.pairs:
        i, j = index[pair.a], index[pair.b]
        overlaps[i, j] = overlaps[j, i] = pair.jaccard
        ranks[i, j] = ranks[j, i] = np.nan if pair.spearman is None else pair.spearman
    return overlaps, ranks


def _draw_matrix(
    axes: "Axes", names: list[str], matrix: np.ndarray, title: str, *, vmin: float
) -> None:
    colours = plotting.DIVERGING_MAP if vmin < 0 else "Blues"
    axes.imshow(matrix, cmap=colours, vmin=vmin, vmax=1)
    labels = [printable(name, _MAX_NAME) for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_xticks(range(len(names)), labels, fontsize=7, rotation=30, ha="right")
    axes.grid(visible=False)
    axes.set_title(title, loc="left", fontsize=9)
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        text = f"{value:.2f}" if np.isfinite(value) else "–"
        colour = "white" if np.isfinite(value) and abs(value) > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _draw_pair(axes: "Axes", a: str, b: str, groups: "list[GroupOfPair]", grouped_by: str) -> None:
    shown = groups[:_MAX_GROUPS]
    positions = np.arange(len(shown))[::-1]
    only_a = -np.array([group.num_only_a for group in shown])
    only_b = np.array([group.num_only_b for group in shown])
    axes.barh(positions, only_a, 0.7, color=plotting.COLOURS[0])
    axes.barh(positions, only_b, 0.7, color=plotting.COLOURS[1])
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(
        positions, [printable(group.group_name, _MAX_NAME) for group in shown], fontsize=7
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
    most = max(int(np.abs([only_a, only_b]).max()), 1)
    axes.set_xlim(-1.05 * most, 1.05 * most)
    axes.set_xlabel(f"samples that only one keeps, by {grouped_by}", fontsize=7)
    axes.set_title(f"← {printable(a, _MAX_NAME)}", loc="left", fontsize=8)
    axes.set_title(f"{printable(b, _MAX_NAME)} →", loc="right", fontsize=8)
