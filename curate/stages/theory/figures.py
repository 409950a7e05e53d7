"""The theory's figures of Sorscher et al. 2022: each a function that draws one file.

Each returns a sentence on the range that was computed, which the picture carries too.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from curate import plotting
from curate.progress import progress_bar
from curate.stages.theory import perceptron

_KEEPS = (1.0, 0.8, 0.5, 0.3, 0.2, 0.1)
_LOWEST_KEEP = 1e-3  # the best keep is sought from here to 1
# At θ = 0 the envelope bends down to a vertical at 2.
_ENVELOPE_ALPHAS = np.concatenate(
    [
        np.geomspace(0.2, 0.9, 6),
        np.linspace(1, 1.8, 11),
        2 - np.geomspace(0.15, 1e-4, 11),
        np.geomspace(2.1, 30, 14),
    ]
)
_KEPT_PER_DIMENSION = "examples kept per dimension, α_prune"
_ALL_PER_DIMENSION = "examples per dimension, α_tot"


def draw_errors(
    path: Path,
    *,
    name: str,
    theta: float,
    highest_alpha: float,
    keeps: tuple[float, ...] = _KEEPS,
    dimensions: int = 200,
    seeds: int = 5,
) -> str:
    """Error against alpha_prune for several keeps, theirs and the best; dots are simulations.

    Hard examples are kept by a probe at `theta` degrees.
    """
    alphas = np.geomspace(0.2, highest_alpha, 100)
    simulated_alphas = [alpha for alpha in (0.3, 0.6, 1.2, 3.0, 6.0) if alpha <= highest_alpha]
    radians = float(np.radians(theta))
    is_drawn = highest_alpha >= _ENVELOPE_ALPHAS
    total = len(keeps) * (1 + len(simulated_alphas)) + int(is_drawn.sum())
    with (
        plotting.new_figure(path, 6.8, 4.8) as (figure, axes),
        progress_bar(f"theory {name}", total, unit="points") as advance,
    ):
        for colour, keep in zip(plotting.COLOURS, keeps, strict=False):
            errors = perceptron.solve_curve(alphas / keep, keep, theta=radians)
            axes.plot(alphas, errors, color=colour, label=f"keep {keep:g}")
            advance(1, len(alphas))
            for alpha in simulated_alphas:
                simulation = perceptron.simulate(
                    alpha / keep, keep, theta=radians, dimensions=dimensions, seeds=seeds
                )
                axes.errorbar(
                    alpha,
                    simulation.error,
                    simulation.standard_error,
                    fmt="o",
                    ms=3.5,
                    color=colour,
                )
                advance(1, 1)
        range_note = _draw_envelope(axes, _ENVELOPE_ALPHAS[is_drawn], radians, advance)
        plotting.log_scale(axes)
        title = f"Hard examples kept by a probe at θ = {theta:g}° (Fig. {name.upper()})"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "test error", title)
        axes.legend()
        note = (
            f"{range_note}\nDots: {seeds} simulated perceptrons each, N = {dimensions}, "
            "with standard errors."
        )
        plotting.caption(figure, note)
    return note


def _find_optima(
    alphas: np.ndarray, theta: float, advance: Callable[[int, int], None]
) -> list[perceptron.Optimum | None]:
    """The envelope, point by point for a bar."""
    optima = []
    for alpha in alphas:
        optima += perceptron.envelope(alpha[None], theta=theta, lowest_keep=_LOWEST_KEEP)
        advance(1, 1)
    return optima


def _draw_envelope(
    axes: Any, alphas: np.ndarray, theta: float, advance: Callable[[int, int], None]
) -> str:
    """The least error over keep, as far as there is a best keep in the range; says how far."""
    optima = _find_optima(alphas, theta, advance)
    points = [
        (alpha, optimum.error)
        for alpha, optimum in zip(alphas, optima, strict=True)
        if optimum is not None
    ]
    style = {"color": "black", "lw": 1.5}
    axes.plot(*np.transpose(points), ls="--", label="best keep", **style)
    note, last = f"Best keep: of all from {_LOWEST_KEEP:g} to 1", points[-1]
    if len(points) < len(alphas):
        # The error tends to 0 with keep, so the line goes on straight down.
        axes.plot([last[0]] * 2, [last[1], axes.get_ylim()[0]], ls=":", **style)
        note += f"; it ends at α_prune = {last[0]:.4f}, where the error tends to 0 with keep"
    return f"{note}."


def _draw_1b(path: Path) -> str:
    """Keeping hard or easy examples, against alpha_tot."""
    alphas = np.geomspace(0.5, 64, 80)
    colours = {"hardest": plotting.HARD, "easiest": plotting.EASY, "random": plotting.RANDOM}
    with (
        plotting.new_figure(path, 8.5, 3.8, ncols=2, sharey=True) as (_, panels),
        progress_bar("theory 1b", 2 * len(colours), unit="points") as advance,
    ):
        for axes, keep in zip(panels, (0.5, 0.2), strict=True):
            for strategy, colour in colours.items():
                errors = perceptron.solve_curve(alphas, keep, strategy=strategy)
                axes.plot(alphas, errors, color=colour, label=strategy)
                advance(1, len(alphas))
            plotting.log_scale(axes)
            title = f"keep {keep:g}, θ = 0 (Fig. 1B)"
            plotting.label_axes(axes, _ALL_PER_DIMENSION, "test error", title)
            axes.legend()
    return "Keep 0.5 and 0.2, α_tot from 0.5 to 64."


def _draw_1c(path: Path) -> str:
    """The difference between keeping hard and easy examples."""
    plotting.import_matplotlib()
    from matplotlib.colors import SymLogNorm

    alphas, keeps = np.geomspace(1, 64, 40), np.linspace(0.1, 0.95, 35)
    hard, easy = [], []
    with progress_bar("theory 1c", len(keeps), unit="points") as advance:
        for keep in map(float, keeps):
            hard.append(perceptron.solve_curve(alphas, keep, strategy="hardest"))
            easy.append(perceptron.solve_curve(alphas, keep, strategy="easiest"))
            advance(1, 2 * len(alphas))
    difference = np.array(hard) - np.array(easy)
    with plotting.new_figure(path) as (figure, axes):
        limit = float(np.abs(difference).max())
        mesh = axes.pcolormesh(
            alphas,
            keeps,
            difference,
            cmap=plotting.DIVERGING_MAP,
            norm=SymLogNorm(0.01, vmin=-limit, vmax=limit),
            shading="gouraud",
        )
        # The logarithm of the ratio has the same zeros and is smoother between the points.
        axes.contour(alphas, keeps, np.log(hard) - np.log(easy), levels=[0], colors="black")
        plotting.log_scale(axes, "x")
        ticks = [-0.1, -0.01, 0, 0.01, 0.1]
        bar = figure.colorbar(mesh, ax=axes, ticks=ticks, format="%g")
        bar.set_label("error, hard − easy (blue: hard is better)")
        title = "Keep hard or easy examples, θ = 0 (Fig. 1C)"
        plotting.label_axes(axes, _ALL_PER_DIMENSION, "fraction kept", title)
        note = (
            f"Equal at the black line: from α_tot = {_crossover(0.5):.2f} on hard examples "
            f"are better at keep 0.5, and from {_crossover(0.2):.2f} on at keep 0.2."
        )
        plotting.caption(figure, note)
    return note


def _crossover(keep: float) -> float:
    """The alpha_tot at which hard and easy examples give the same error."""

    def excess(log_alpha: float) -> float:
        hard, easy = (
            perceptron.solve(float(np.exp(log_alpha)), keep, strategy=strategy).error
            for strategy in ("hardest", "easiest")
        )
        return float(np.log(hard / easy))

    return float(np.exp(optimize.brentq(excess, 0, np.log(64), xtol=1e-4)))


def _draw_1e(path: Path) -> str:
    """Accuracy by keep and alpha_prune, and the best keep."""
    alphas, keeps = np.linspace(0.2, 2.6, 40), np.geomspace(0.01, 1, 30)
    errors = []
    total = len(keeps) + len(_ENVELOPE_ALPHAS)
    with progress_bar("theory 1e", total, unit="points") as advance:
        for keep in map(float, keeps):
            errors.append(perceptron.solve_curve(alphas / keep, keep))
            advance(1, len(alphas))
        optima = _find_optima(_ENVELOPE_ALPHAS, 0.0, advance)
    best = [
        (alpha, optimum.keep)
        for alpha, optimum in zip(_ENVELOPE_ALPHAS, optima, strict=True)
        if optimum is not None
    ]
    with plotting.new_figure(path, 6.6, 4.6) as (figure, axes):
        mesh = axes.pcolormesh(
            alphas, keeps, 1 - np.array(errors), cmap=plotting.SEQUENTIAL_MAP, shading="gouraud"
        )
        axes.plot(*np.transpose(best), color="white", lw=2, label="best keep")
        plotting.log_scale(axes, "y")
        axes.set(xlim=(alphas[0], alphas[-1]), ylim=(keeps[0], keeps[-1]))
        figure.colorbar(mesh, ax=axes, label="test accuracy")
        title = "The best fraction to keep, hard examples, θ = 0 (Fig. 1E)"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "fraction kept", title)
        axes.legend(labelcolor="white", loc="lower left")
        note = (
            f"Best keep: of all from {_LOWEST_KEEP:g} to 1; it falls below that at α_prune = "
            f"{best[-1][0]:.4f}.\nFrom 2 on none is best: the error tends to 0 with keep."
        )
        plotting.caption(figure, note)
    return note


def _draw_1f(path: Path) -> str:
    """What each example tells, in nats."""
    alphas = np.concatenate([np.linspace(0.1, 3, 60), np.linspace(3.1, 8, 20)])
    keeps = (1.0, 0.5, 0.2, 0.1)
    with (
        plotting.new_figure(path) as (_, axes),
        progress_bar("theory 1f", len(keeps), unit="points") as advance,
    ):
        for colour, keep in zip(plotting.COLOURS, keeps, strict=False):
            gains = perceptron.information(alphas, keep)
            axes.plot(alphas, gains, color=colour, label=f"keep {keep:g}")
            advance(1, len(alphas))
        plotting.log_scale(axes, "y")
        title = "Information gain, hard examples kept, θ = 0 (Fig. 1F)"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "information an example (nats)", title)
        axes.legend()
    return "Keep 1, 0.5, 0.2 and 0.1, α_prune from 0.1 to 8."


def _draw_2a(path: Path) -> str:
    """Teacher, probe and the examples that the probe finds hard, in the plane of the two."""
    theta, keep = np.radians(20), 0.3
    generator = np.random.default_rng(1)
    points = generator.standard_normal((160, 2))
    teacher, probe = np.array([0.0, 1.0]), np.array([-np.sin(theta), np.cos(theta)])
    margins = np.abs(points @ probe)
    is_kept = margins <= np.sort(margins)[round(keep * len(points)) - 1]
    is_positive = points @ teacher > 0
    reach = 3.0
    with plotting.new_figure(path, 6.4, 4.8) as (figure, axes):
        for label, marker in ((True, "o"), (False, "s")):
            for kept, colour in ((True, plotting.HARD), (False, plotting.RANDOM)):
                shown = points[(is_positive == label) & (is_kept == kept)]
                name = f"label {'+' if label else '−'}1, {'kept' if kept else 'pruned'}"
                face = colour if kept else "none"
                axes.scatter(
                    *shown.T, s=22, marker=marker, facecolors=face, edgecolors=colour, label=name
                )
        for letter, vector, colour in (
            ("teacher T", teacher, plotting.FULL),
            ("probe J", probe, plotting.EASY),
        ):
            boundary = np.outer([-1, 1], [vector[1], -vector[0]]) * 2 * reach
            axes.plot(*boundary.T, color=colour, lw=1.5)
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2}
            axes.annotate("", 2.1 * vector, (0, 0), arrowprops=arrow)
            side = 1 if vector is teacher else -1
            text_position = 2.3 * vector + np.array([0.08 * side, 0])
            align = "left" if side == 1 else "right"
            axes.text(*text_position, letter, color=colour, ha=align, weight="bold")
        angles = np.pi / 2 + np.linspace(0, theta, 20)
        axes.plot(1.3 * np.cos(angles), 1.3 * np.sin(angles), color=plotting.FULL, lw=1)
        middle = np.pi / 2 + theta / 2
        axes.text(
            1.1 * np.cos(middle),
            1.1 * np.sin(middle),
            "θ",
            ha="center",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        point = points[np.argmin(np.abs(points - [2.0, 2.0]).sum(axis=1))]
        foot = point - (point @ probe) * probe
        axes.plot(*np.transpose([point, foot]), color=plotting.EASY, ls="--", lw=1)
        axes.text(*((point + foot) / 2 + [0.08, 0]), "margin", color=plotting.EASY, fontsize=9)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.grid(visible=False)
        plotting.label_axes(
            axes,
            "across the teacher",
            "along the teacher",
            "What a probe at an angle keeps (Fig. 2A)",
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        note = "160 examples, θ = 20°: kept are the 30% nearest to the probe's boundary (blue)."
        plotting.caption(figure, note)
    return note


def _draw_3a(path: Path) -> str:
    """Error against alpha_prune when corpora of a fixed size are pruned more and more."""
    totals, keeps = np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0]), np.geomspace(0.02, 1, 90)
    errors = []
    with (
        plotting.new_figure(path, 6.8, 4.8) as (figure, axes),
        progress_bar("theory 3a", len(keeps) + len(_ENVELOPE_ALPHAS), unit="points") as advance,
    ):
        for keep in map(float, keeps):
            errors.append(perceptron.solve_curve(totals, keep))
            advance(1, len(totals))
        colours = plotting.sequential_colours(len(totals))
        for total, colour, curve in zip(totals, colours, np.transpose(errors), strict=True):
            axes.plot(keeps * total, curve, color=colour, label=f"α_tot {total:g}")
        unpruned = errors[-1]
        axes.plot(totals, unpruned, "o-", color=plotting.RANDOM, ms=4, label="keep 1")
        slope = np.polyfit(np.log(totals[-3:]), np.log(unpruned[-3:]), 1)[0]
        axes.text(20, 0.035, f"slope −{abs(slope):.2f}", color=plotting.RANDOM)
        alphas = _ENVELOPE_ALPHAS
        axes.set_ylim(bottom=float(np.min(errors)) / 2)
        range_note = _draw_envelope(axes, alphas, 0.0, advance)
        plotting.log_scale(axes)
        axes.set_xlim(0.2, 100)
        title = "Hard examples kept of a corpus, θ = 0 (Fig. 3A)"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "test error", title)
        axes.legend()
        note = f"{range_note}\nLines of one α_tot: keep from {keeps[0]:g} to 1."
        plotting.caption(figure, note)
    return note


FIGURES: dict[str, Callable[[Path], str]] = {
    "1a": functools.partial(draw_errors, name="1a", theta=0, highest_alpha=8),
    "1b": _draw_1b,
    "1c": _draw_1c,
    "1e": _draw_1e,
    "1f": _draw_1f,
    "2a": _draw_2a,
    "2b": functools.partial(draw_errors, name="2b", theta=0, highest_alpha=30),
    "2c": functools.partial(draw_errors, name="2c", theta=10, highest_alpha=30),
    "2d": functools.partial(draw_errors, name="2d", theta=20, highest_alpha=30),
    "3a": _draw_3a,
}
