"""The charts of `curate fit`: arrays in, a PNG and an SVG out."""

from pathlib import Path

import numpy as np

from curate import plotting

_MARKERS = "osD^vP*X"
_ARM_COLOURS = {
    "hardest": plotting.HARD,
    "easiest": plotting.EASY,
    "random": plotting.RANDOM,
    "everything": plotting.FULL,
}


def draw_scaling(
    path: Path,
    arms: dict[str, tuple[np.ndarray, np.ndarray]],
    laws: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Test error against the number of training samples, as Fig. 3 of the paper.

    `arms` are points, such as "hardest 0.5 by el2n", and `laws` are lines: (sizes, errors) each.
    """
    with plotting.new_figure(path, 7, 4.4) as (_, axes):
        keeps = {name: name.split()[1] if " " in name else name for name in arms}
        sorted_keeps = sorted(set(keeps.values()))
        for name, (sizes, errors) in arms.items():
            marker = _MARKERS[sorted_keeps.index(keeps[name]) % len(_MARKERS)]
            colour = _arm_colour(name)
            axes.plot(sizes, errors, marker, ms=4, label=name, ls="none", color=colour)
        for (name, (sizes, errors)), style in zip(laws.items(), ("-", "--"), strict=False):
            colour = plotting.RANDOM if name == "random" else "black"
            axes.plot(sizes, errors, style, color=colour, label=f"{name}, fitted")
        plotting.log_scale(axes)
        plotting.label_axes(axes, "training samples", "test error")
        axes.legend(fontsize=7, ncols=2)


def draw_crossover(path: Path, lines: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Gain over random in points with its interval, against the size of the corpus (Fig. 1D)."""
    with plotting.new_figure(path, 7, 4) as (_, axes):
        for index, (name, (sizes, gains, intervals)) in enumerate(lines.items()):
            alpha = 1 - 0.5 * (index // 2) / max(len(lines) // 2, 1)
            axes.errorbar(
                sizes,
                gains,
                yerr=intervals,
                fmt="o-",
                ms=4,
                capsize=2,
                label=name,
                color=_arm_colour(name),
                alpha=alpha,
            )
        axes.axhline(0, color="black", lw=0.8)
        plotting.log_scale(axes, "x")
        plotting.symlog_points(axes, "y")
        plotting.label_axes(axes, "samples in the corpus", "accuracy over random (points, 95%)")
        axes.legend(fontsize=7)


def _arm_colour(arm: str) -> str:
    return _ARM_COLOURS.get(arm.partition(" ")[0], plotting.COLOURS[2])
