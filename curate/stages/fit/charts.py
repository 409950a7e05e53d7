"""The charts of `curate fit`: arrays in, a PNG and an SVG out."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curate import plotting

_MARKERS = "osD^vP*X"
_ARM_COLOURS = {
    "hardest": plotting.HARD,
    "easiest": plotting.EASY,
    "random": plotting.RANDOM,
    "everything": plotting.FULL,
}
_MAX_NAMES = 40  # classes that are named along an axis
_MAX_NUMBERS = 200  # cells whose numbers are written
_MAX_NAME_LENGTH = 24


class Points(NamedTuple):
    """Means with the half widths of their 95% intervals over seeds, [n] each."""

    x: np.ndarray
    means: np.ndarray
    half_widths: np.ndarray


def draw_scaling(
    path: Path,
    arms: dict[str, tuple[np.ndarray, np.ndarray]],
    laws: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Test error against the number of training samples, as Fig. 3 of the paper.

    `arms` are points, such as "hardest 0.5 by el2n", and `laws` are lines: (sizes, errors) each.
    """
    markers, labels = _markers(list(arms)), _legend_labels(list(arms))
    with plotting.new_figure(path, 8.5, 4.4) as (figure, axes):
        for name, (sizes, errors) in arms.items():
            axes.plot(
                sizes,
                errors,
                markers[name],
                ms=4,
                label=labels[name],
                ls="none",
                color=_arm_colour(name),
            )
        for (name, (sizes, errors)), style in zip(laws.items(), ("-", "--"), strict=False):
            colour = plotting.RANDOM if name == "random" else "black"
            axes.plot(sizes, errors, style, color=colour, label=f"{name}, fitted")
        plotting.log_scale(axes)
        plotting.label_axes(axes, "training samples", "test error")
        figure.legend(fontsize=7, loc="outside right upper")


def draw_crossover(path: Path, lines: dict[str, Points]) -> None:
    """Gain over random in points with its interval, against the size of the corpus (Fig. 1D)."""
    with plotting.new_figure(path, 8.5, 4) as (figure, axes):
        keeps = sorted({_keep_word(name) for name in lines}, reverse=True)
        metrics = sorted({name.partition(" by ")[2] for name in lines})
        for name, points in lines.items():
            alpha = 1 - 0.7 * keeps.index(_keep_word(name)) / len(keeps)
            marker = _MARKERS[metrics.index(name.partition(" by ")[2]) % len(_MARKERS)]
            axes.errorbar(
                points.x,
                points.means,
                yerr=points.half_widths,
                fmt=f"{marker}-",
                ms=4,
                capsize=2,
                label=name,
                color=_arm_colour(name),
                alpha=alpha,
            )
        axes.axhline(0, color="black", lw=0.8)
        plotting.log_scale(axes, "x")
        plotting.symlog_points(axes, "y")
        label = "accuracy over random (points, 95% over seeds)"
        plotting.label_axes(axes, "samples in the corpus", label)
        figure.legend(fontsize=7, loc="outside right upper")


def draw_metrics(
    path: Path, panels: dict[str, dict[str, Points]], random: Points, everything: float
) -> None:
    """Accuracy against the fraction kept, a line per metric, as Figs. 5B and 5C of the paper.

    A panel per strategy; `everything` is the accuracy of the whole corpus. All in percent.
    """
    metrics = sorted({metric for lines in panels.values() for metric in lines})
    size = (1.8 + 3.4 * len(panels), 4)
    with plotting.new_figure(path, *size, ncols=len(panels), sharey=True, squeeze=False) as (
        figure,
        grid,
    ):
        for axes, (strategy, lines) in zip(grid[0], panels.items(), strict=True):
            for metric, points in lines.items():
                index = metrics.index(metric)
                axes.errorbar(
                    points.x,
                    points.means,
                    yerr=points.half_widths,
                    fmt=f"{_MARKERS[index % len(_MARKERS)]}-",
                    ms=4,
                    lw=1.2,
                    capsize=2,
                    label=metric,
                    color=plotting.COLOURS[index % (len(plotting.COLOURS) - 1)],
                )
            axes.errorbar(
                random.x,
                random.means,
                yerr=random.half_widths,
                fmt="--",
                capsize=2,
                label="random",
                color=plotting.RANDOM,
            )
            axes.axhline(everything, color=plotting.FULL, lw=1, label="everything")
            axes.invert_xaxis()  # from little pruning to much
            plotting.label_axes(axes, "fraction kept", "", f"{strategy} kept")
        grid[0, 0].set_ylabel("right on the test set (%, 95% over seeds)")
        entries = {
            label: handle
            for axes in grid[0]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        order = sorted(entries, key=lambda label: (label in ("random", "everything"), label))
        handles = [entries[label] for label in order]
        figure.legend(handles, order, fontsize=7, loc="outside right upper")


def draw_compute(path: Path, arms: dict[str, Points]) -> None:
    """Accuracy in percent against the samples that a model was shown (appendix C of the paper)."""
    markers, labels = _markers(list(arms)), _legend_labels(list(arms))
    with plotting.new_figure(path, 8.5, 4.4) as (figure, axes):
        for name, points in arms.items():
            axes.errorbar(
                points.x,
                points.means,
                yerr=points.half_widths,
                fmt=markers[name],
                ms=4,
                capsize=2,
                label=labels[name],
                color=_arm_colour(name),
            )
        plotting.log_scale(axes, "x")
        plotting.label_axes(
            axes,
            "samples shown in training (samples × epochs)",
            "right on the test set (%, 95% over seeds)",
        )
        figure.legend(fontsize=7, loc="outside right upper")


def draw_classes(path: Path, kinds: list[str], classes: list[str], gains: np.ndarray) -> None:
    """Gain over random in points, by kind of selection and class (appendix I of the paper).

    `gains` is [kinds, classes], with NaN where a class was not tested.
    """
    size = (4 + 0.36 * min(len(classes), _MAX_NAMES), 1.9 + 0.28 * len(kinds))
    limit = max(float(np.nanmax(np.abs(gains))), 0.1)
    with plotting.new_figure(path, *size) as (figure, axes):
        mesh = axes.imshow(
            gains,
            aspect="auto",
            cmap=plotting.DIVERGING_MAP,
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
        )
        step = -(-len(classes) // _MAX_NAMES)
        names = [_printable(name) for name in classes[::step]]
        axes.set_xticks(range(0, len(classes), step), names, fontsize=7, rotation=90)
        axes.set_yticks(range(len(kinds)), kinds, fontsize=7)
        if gains.size <= _MAX_NUMBERS:
            decimals = 1 if limit < 10 else 0
            for row, column in np.argwhere(np.isfinite(gains)):
                value = gains[row, column]
                colour = "white" if abs(value) > 0.6 * limit else "black"
                axes.text(
                    column,
                    row,
                    f"{value:+.{decimals}f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=colour,
                )
        axes.grid(False)
        plotting.label_axes(axes, "class, that with the highest accuracy first", "")
        figure.colorbar(mesh, ax=axes, label="over random (points; red: better)")


def _markers(names: list[str]) -> dict[str, str]:
    """One marker per fraction kept."""
    words = {name: _keep_word(name) for name in names}
    sorted_words = sorted(set(words.values()))
    return {
        name: _MARKERS[sorted_words.index(word) % len(_MARKERS)] for name, word in words.items()
    }


def _legend_labels(names: list[str]) -> dict[str, str]:
    """Arms of several metrics look alike, so the legend has one entry for them, without a metric.

    matplotlib leaves labels that begin with an underscore out.
    """
    metrics = {name.partition(" by ")[2] for name in names} - {""}
    if len(metrics) <= 1:
        return {name: name for name in names}
    labels: dict[str, str] = {}
    for name in names:
        short = name.partition(" by ")[0]
        labels[name] = f"_{short}" if short in labels.values() else short
    return labels


def _keep_word(name: str) -> str:
    """The fraction in a name such as "hardest 0.5 by el2n"; of another name, the name."""
    words = name.split()
    return words[1] if len(words) > 1 else name


def _arm_colour(arm: str) -> str:
    return _ARM_COLOURS.get(arm.partition(" ")[0], plotting.COLOURS[2])


def _printable(name: str) -> str:
    return "".join(
        character if character.isprintable() else "\ufffd" for character in name[:_MAX_NAME_LENGTH]
    )
