"""The charts of the report: arrays in, a PNG and an SVG out. They know no catalog."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 40  # rows or columns of a heat map with names


def histograms(path: Path, scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One small histogram a scoring, from counts [bins] and edges [bins + 1]."""
    columns = min(len(scores), 3)
    lines = -(-len(scores) // columns)
    with figures.drawing(path, 3.2 * columns, 2.2 * lines, nrows=lines, ncols=columns, squeeze=False) as (_, grid):
        for axes in grid.ravel()[len(scores) :]:
            axes.set_axis_off()
        for axes, (name, (counts, edges)) in zip(grid.ravel(), scores.items(), strict=False):
            axes.stairs(counts, edges, fill=True, color=figures.COLOURS[0])
            axes.set_title(name, loc="left", fontsize=9)
            axes.set_ylabel("samples", fontsize=8)
            axes.set_xlabel("score (high: keep)", fontsize=8)
            axes.tick_params(labelsize=7)


def correlations(path: Path, names: list[str], matrix: np.ndarray) -> None:
    """Spearman's rank correlations [s, s], as Fig. 5A of the paper."""
    side = 2.4 + 0.42 * len(names)
    with figures.drawing(path, side + 0.8, side) as (figure, axes):
        mesh = axes.imshow(matrix, cmap=figures.DIVERGING, vmin=-1, vmax=1)
        _named_cells(axes, names, names)
        for row, column in np.argwhere(np.isfinite(matrix)):
            value = matrix[row, column]
            axes.text(column, row, f"{round(value, 2) + 0:.2f}".replace("0.", "."), ha="center", va="center", fontsize=7,
                      color="white" if abs(value) > 0.6 else "black")  # fmt: skip
        figure.colorbar(mesh, ax=axes, label="Spearman's ρ", shrink=0.8)


def overlap(path: Path, clusters: list[str], classes: list[str], shares: np.ndarray) -> None:
    """Which classes make up each cluster, shares [clusters, classes], as Fig. 6A of the paper."""
    width, height = 2.6 + 0.22 * min(len(classes), MOST), 2.0 + 0.16 * min(len(clusters), 60)
    with figures.drawing(path, max(width, 4.5), max(height, 3)) as (figure, axes):
        mesh = axes.imshow(shares, aspect="auto", cmap=figures.MAP, vmin=0, vmax=1, interpolation="nearest")
        _named_cells(axes, clusters, classes)
        figures.named(axes, "class", "cluster")
        figure.colorbar(mesh, ax=axes, label="share of the cluster")


def sizes(path: Path, counts: np.ndarray) -> None:
    """Sizes of clusters, the largest first."""
    with figures.drawing(path, 6, 2.6) as (_, axes):
        axes.stairs(np.sort(counts)[::-1], np.arange(len(counts) + 1), fill=True, color=figures.COLOURS[2])
        figures.named(axes, "clusters, by size", "samples")


def kept(path: Path, classes: list[str], shares: dict[str, np.ndarray]) -> None:
    """What each selection keeps of each class, shares [classes]."""
    with figures.drawing(path, max(6.5, 3.5 + 0.3 * len(classes)), 3) as (figure, axes):
        places = np.arange(len(classes))
        for index, (name, values) in enumerate(shares.items()):
            shift = (index - (len(shares) - 1) / 2) * 0.8 / len(shares)
            axes.bar(places + shift, values, 0.8 / len(shares), color=figures.COLOURS[index % 7], label=name)
        axes.set_xticks(places, [_short(name) for name in classes], rotation=90 if len(classes) > 12 else 0, fontsize=8)
        axes.set_ylim(0, 1.02)
        figures.named(axes, "class", "share kept")
        figure.legend(fontsize=7, loc="outside right upper")


def comparisons(path: Path, names: list[str], differences: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Paired differences in points with their 95% intervals, a line a selection."""
    with figures.drawing(path, 7.5, 1.4 + 0.38 * len(names)) as (_, axes):
        places = np.arange(len(names))[::-1]
        for shift, colour, (name, (means, intervals)) in zip(
            (0.12, -0.12), (figures.HARD, figures.EASY), differences.items(), strict=False
        ):
            axes.errorbar(means, places + shift, xerr=intervals, fmt="o", ms=4, capsize=2, color=colour, label=name)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(places, names, fontsize=8)
        axes.set_xscale("symlog", linthresh=2)  # differences of tenths, and collapses by tens of points
        axes.set_xticks(_ticks(*axes.get_xlim()), minor=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        figures.named(axes, "points of test accuracy (95% interval)", "")
        axes.legend(fontsize=8)


def scaling(
    path: Path, arms: dict[str, tuple[np.ndarray, np.ndarray]], laws: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:  # fmt: skip
    """Test error against the number of training samples: arms as points, laws as lines, as Fig. 3 of the paper."""
    with figures.drawing(path, 7, 4.4) as (_, axes):
        keep = {name: name.split()[1] if " " in name else name for name in arms}  # "hardest 0.5 by el2n"
        keeps = sorted(set(keep.values()))
        for name, (sizes, errors) in arms.items():
            shape = "osD^vP*X"[keeps.index(keep[name]) % 8]
            axes.plot(sizes, errors, shape, ms=4, label=name, ls="none", color=_colour(name))
        for (name, (sizes, errors)), style in zip(laws.items(), ("-", "--"), strict=False):
            axes.plot(sizes, errors, style, color=figures.RANDOM if name == "random" else "black", label=f"{name}, fitted")
        figures.logarithmic(axes)
        figures.named(axes, "training samples", "test error")
        axes.legend(fontsize=7, ncols=2)


def _colour(arm: str) -> str:
    known = {"hardest": figures.HARD, "easiest": figures.EASY, "random": figures.RANDOM, "everything": figures.FULL}
    return known.get(arm.partition(" ")[0], figures.COLOURS[2])


def crossover(path: Path, lines: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Gain over random in points with its interval, against the size of the corpus, as Fig. 1D of the paper."""
    with figures.drawing(path, 7, 4) as (_, axes):
        for index, (name, (sizes, gains, intervals)) in enumerate(lines.items()):
            alpha = 1 - 0.5 * (index // 2) / max(len(lines) // 2, 1)
            axes.errorbar(sizes, gains, yerr=intervals, fmt="o-", ms=4, capsize=2, label=name, color=_colour(name), alpha=alpha)
        axes.axhline(0, color="black", lw=0.8)
        figures.logarithmic(axes, "x")
        axes.set_yscale("symlog", linthresh=2)
        axes.set_yticks(_ticks(*axes.get_ylim()), minor=False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        figures.named(axes, "samples in the corpus", "accuracy over random (points, 95%)")
        axes.legend(fontsize=7)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 … to both sides of 0, as far as the axis goes; tenths where it goes no further than 1."""
    powers = range(3) if max(-low, high) > 1 else range(-1, 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in (*(-step for step in steps), 0.0, *steps) if low <= tick <= high]


def _named_cells(axes: "Axes", rows: list[str], columns: list[str]) -> None:
    for put, names, turned in ((axes.set_yticks, rows, 0), (axes.set_xticks, columns, 90)):
        step = -(-len(names) // MOST)
        put(range(0, len(names), step), [_short(name) for name in names[::step]], fontsize=7, rotation=turned)
    axes.grid(False)


def _short(name: str) -> str:
    """What fits beside an axis: 24 signs, and none that are no signs."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in name[:24])
