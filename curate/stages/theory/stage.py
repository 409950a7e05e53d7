"""`curate theory`: what the perceptron theory of data pruning predicts, as numbers or figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from curate import plotting
from curate.errors import CurateError, OptionError
from curate.options import Option, verb
from curate.progress import log, progress_bar
from curate.stages.theory import perceptron

_KEEPS = (1.0, 0.8, 0.5, 0.3, 0.2, 0.1)
_KEPT_PER_DIMENSION = "examples kept per dimension, α_prune"


def _errors(alphas: np.ndarray, keep: float, **options: Any) -> np.ndarray:
    """Test errors at many values of alpha_tot."""
    return np.array([perceptron.solve(float(alpha), keep, **options).error for alpha in alphas])


def _draw_1a(path: Path) -> None:
    """Error against alpha_prune, hard examples kept by a perfect probe; dots are simulations."""
    alphas = np.geomspace(0.2, 8, 28)
    simulated_alphas = np.geomspace(0.3, 6, 6)
    total = len(_KEEPS) * len(simulated_alphas)
    with plotting.new_figure(path) as (_, axes), progress_bar("simulate", total) as advance:
        for colour, keep in zip(plotting.COLOURS, _KEEPS, strict=False):
            errors = _errors(alphas / keep, keep)
            axes.plot(alphas, errors, color=colour, label=f"keep {keep:g}")
            for alpha in simulated_alphas:
                simulation = perceptron.simulate(alpha / keep, keep, seeds=6)
                axes.errorbar(
                    alpha,
                    simulation.error,
                    simulation.standard_error,
                    fmt="o",
                    ms=3.5,
                    color=colour,
                )
                advance(1, 1)
        axes.plot(alphas, _envelope(alphas), color="black", ls="--", label="best keep")
        plotting.log_scale(axes)
        title = "Hard examples kept, θ = 0 (Fig. 1A)"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "test error", title)
        axes.legend()


def _envelope(alphas: np.ndarray) -> np.ndarray:
    """The least error over keep at each alpha_prune, for a perfect probe."""
    keeps = np.geomspace(0.05, 1, 24)
    return np.asarray(np.min([_errors(alphas / keep, float(keep)) for keep in keeps], axis=0))


def _draw_1b(path: Path) -> None:
    """Keeping hard or easy examples, against alpha_tot."""
    alphas = np.geomspace(0.5, 64, 40)
    colours = {"hardest": plotting.HARD, "easiest": plotting.EASY, "random": plotting.RANDOM}
    with plotting.new_figure(path, 8.5, 3.8, ncols=2, sharey=True) as (_, panels):
        for axes, keep in zip(panels, (0.5, 0.2), strict=True):
            for strategy, colour in colours.items():
                errors = _errors(alphas, keep, strategy=strategy)
                axes.plot(alphas, errors, color=colour, label=strategy)
            plotting.log_scale(axes)
            title = f"keep {keep:g} (Fig. 1B)"
            plotting.label_axes(axes, "examples per dimension, α_tot", "test error", title)
            axes.legend()


def _draw_1c(path: Path) -> None:
    """The difference between keeping hard and easy examples."""
    alphas, keeps = np.geomspace(1, 64, 30), np.linspace(0.1, 0.95, 18)
    hard = np.array([_errors(alphas, float(keep)) for keep in keeps])
    easy = np.array([_errors(alphas, float(keep), strategy="easiest") for keep in keeps])
    difference = hard - easy
    with plotting.new_figure(path) as (figure, axes):
        limit = float(np.abs(difference).max())
        mesh = axes.pcolormesh(
            alphas,
            keeps,
            difference,
            cmap=plotting.DIVERGING_MAP,
            vmin=-limit,
            vmax=limit,
            shading="gouraud",
        )
        axes.contour(alphas, keeps, difference, levels=[0], colors="black")
        plotting.log_scale(axes, "x")
        figure.colorbar(mesh, ax=axes, label="error, hard − easy (blue: hard is better)")
        title = "Keep hard or easy examples (Fig. 1C)"
        plotting.label_axes(axes, "examples per dimension, α_tot", "fraction kept", title)


def _draw_1e(path: Path) -> None:
    """Accuracy by keep and alpha_prune, and the best keep."""
    alphas, keeps = np.linspace(0.2, 2.6, 40), np.geomspace(0.08, 1, 30)
    errors = np.array([_errors(alphas / keep, float(keep)) for keep in keeps])
    with plotting.new_figure(path) as (figure, axes):
        mesh = axes.pcolormesh(
            alphas, keeps, 1 - errors, cmap=plotting.SEQUENTIAL_MAP, shading="gouraud"
        )
        best_keeps = keeps[errors.argmin(axis=0)]
        axes.plot(alphas, best_keeps, color="white", lw=2, label="best keep")
        plotting.log_scale(axes, "y")
        figure.colorbar(mesh, ax=axes, label="test accuracy")
        title = "The best fraction to keep (Fig. 1E)"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "fraction kept", title)
        axes.legend(labelcolor="white", loc="lower left")


def _draw_1f(path: Path) -> None:
    """What each example tells, in nats."""
    alphas = np.concatenate([np.linspace(0.1, 4, 40), np.linspace(4.2, 8, 12)])
    with plotting.new_figure(path) as (_, axes):
        for colour, keep in zip(plotting.COLOURS, (1.0, 0.5, 0.2, 0.1), strict=False):
            gains = perceptron.information(alphas, keep)
            axes.plot(alphas, gains, color=colour, label=f"keep {keep:g}")
        plotting.log_scale(axes, "y")
        title = "Information gain, hard examples kept, θ = 0 (Fig. 1F)"
        plotting.label_axes(axes, _KEPT_PER_DIMENSION, "information an example (nats)", title)
        axes.legend()


def _imperfect_probe(theta: float, letter: str) -> Callable[[Path], None]:
    """Error against alpha_prune, hard examples kept by a probe at an angle in degrees."""

    def draw(path: Path) -> None:
        alphas = np.geomspace(0.2, 12, 26)
        with plotting.new_figure(path) as (_, axes):
            for colour, keep in zip(plotting.COLOURS, _KEEPS, strict=False):
                errors = _errors(alphas / keep, keep, theta=np.radians(theta))
                axes.plot(alphas, errors, color=colour, label=f"keep {keep:g}")
            plotting.log_scale(axes)
            title = f"Hard examples kept by a probe at θ = {theta:g}° (Fig. 2{letter})"
            plotting.label_axes(axes, _KEPT_PER_DIMENSION, "test error", title)
            axes.legend()

    return draw


FIGURES: dict[str, Callable[[Path], None]] = {
    "1a": _draw_1a,
    "1b": _draw_1b,
    "1c": _draw_1c,
    "1e": _draw_1e,
    "1f": _draw_1f,
    "2b": _imperfect_probe(10, "B"),
    "2c": _imperfect_probe(20, "C"),
    "2d": _imperfect_probe(50, "D"),
}


def _check_options(arguments: Mapping[str, Any]) -> None:
    if arguments["alpha_tot"] is None and arguments["figure"] is None:
        raise OptionError(
            "give --alpha-tot, the examples per dimension before pruning; or --figure 1a"
        )


@verb(check=_check_options)
def theory(
    *,
    alpha_tot: Annotated[
        float | None, Option("Examples per dimension before pruning.", above=0)
    ] = None,
    keep: Annotated[float, Option("Fraction to keep.", above=0, maximum=1)] = 1.0,
    theta: Annotated[
        float, Option("Angle between teacher and probe in degrees.", minimum=0, below=90)
    ] = 0.0,
    strategy: Annotated[
        str, Option("Which examples are kept.", choices=perceptron.STRATEGIES)
    ] = "hardest",
    margin: Annotated[
        str, Option("Rank by the absolute or the signed margin.", choices=perceptron.MARGINS)
    ] = "absolute",
    figure: Annotated[
        str | None,
        Option("Draw a figure of the paper (1d comes from your own runs).", choices=tuple(FIGURES)),
    ] = None,
    out: Annotated[
        str | Path, Option("Folder for figures.", metavar="DIR", short="-o")
    ] = "figures",
) -> dict[str, Any] | str:
    """The student's error, overlap and kappa at one point; or draw `figure`, and return its path.

    Figures of Sorscher et al. 2022, as PNG and SVG in the folder `out`. Raises CurateError.
    """
    if figure is not None:
        path = Path(out).expanduser().absolute() / f"theory-{figure}"
        FIGURES[figure](path)
        log.info("drew %s, and the same as SVG", path.with_name(f"{path.name}.png"))
        return f"{path}.png"
    if alpha_tot is None:
        raise TypeError("alpha_tot or figure was checked before")
    try:
        solution = perceptron.solve(
            alpha_tot, keep, theta=float(np.radians(theta)), strategy=strategy, margin=margin
        )
    except (ValueError, ArithmeticError) as error:
        raise CurateError(f"theory: {error}") from error
    return {
        "alpha_tot": alpha_tot,
        "keep": keep,
        "theta": theta,
        "strategy": strategy,
        "margin": margin,
        **solution._asdict(),
    }
