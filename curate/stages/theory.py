"""`curate theory`: what the perceptron theory of data pruning predicts, at one point or as the paper's figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from curate import figures, perceptron
from curate.errors import CurateError
from curate.progress import bar, log

_KEEPS = (1.0, 0.8, 0.5, 0.3, 0.2, 0.1)


def theory(
    *,
    alpha_tot: float | None = None,
    keep: float = 1.0,
    theta: float = 0.0,
    strategy: str = "hardest",
    margin: str = "absolute",
    figure: str | None = None,
    out: str | Path = "figures",
) -> dict[str, Any] | str:
    """The student's error, overlap and kappa at one point (theta in degrees); or draw `figure`, and return its path.

    Figures are 1a, 1b, 1c, 1e, 1f, 2b, 2c, 2d of Sorscher et al. 2022, as PNG and SVG in the folder `out`. Raises CurateError.
    """
    if figure is not None:
        if figure not in FIGURES:
            raise CurateError(f"no figure called '{figure}'; there are: {', '.join(FIGURES)} (1d comes from your own runs)")
        path = Path(out).expanduser().absolute() / f"theory-{figure}"
        FIGURES[figure](path)
        log.info("drew %s, and the same as SVG", path.with_name(f"{path.name}.png"))
        return f"{path}.png"
    if alpha_tot is None:
        raise CurateError("give --alpha-tot, the examples per dimension before pruning; or --figure 1a")
    try:
        found = perceptron.solve(alpha_tot, keep, theta=np.radians(theta), strategy=strategy, margin=margin)
    except (ValueError, ArithmeticError) as error:
        raise CurateError(f"theory: {error}") from error
    return {"alpha_tot": alpha_tot, "keep": keep, "theta": theta, "strategy": strategy, "margin": margin, **found._asdict()}


def _errors(alphas: np.ndarray, keep: float, **options: Any) -> np.ndarray:
    """Theory at many values of alpha_tot."""
    return np.array([perceptron.solve(float(alpha), keep, **options).error for alpha in alphas])


def _figure_1a(path: Path) -> None:
    """Error against alpha_prune, hard examples kept by a perfect probe; dots are simulations."""
    alphas = np.geomspace(0.2, 8, 28)
    dots = np.geomspace(0.3, 6, 6)
    with figures.drawing(path) as (_, axes), bar("simulate", len(_KEEPS) * len(dots)) as advance:
        best = np.full(len(alphas), np.inf)
        for colour, keep in zip(figures.COLOURS, _KEEPS, strict=False):
            errors = _errors(alphas / keep, keep)
            best = np.minimum(best, errors)
            axes.plot(alphas, errors, color=colour, label=f"keep {keep:g}")
            for alpha in dots:
                simulated = perceptron.simulate(alpha / keep, keep, seeds=6)
                axes.errorbar(alpha, simulated.error, simulated.standard_error, fmt="o", ms=3.5, color=colour)
                advance(1, 1)
        axes.plot(alphas, _envelope(alphas), color="black", ls="--", label="best keep")
        figures.logarithmic(axes)
        figures.named(axes, "examples kept per dimension, α_prune", "test error", "Hard examples kept, θ = 0 (Fig. 1A)")
        axes.legend()


def _envelope(alphas: np.ndarray, theta: float = 0.0, keeps: np.ndarray | None = None) -> np.ndarray:
    """The least error over keep at each alpha_prune."""
    keeps = np.geomspace(0.05, 1, 24) if keeps is None else keeps
    return np.asarray(np.min([_errors(alphas / keep, float(keep), theta=theta) for keep in keeps], axis=0))


def _figure_1b(path: Path) -> None:
    """Keeping hard or easy examples, against alpha_tot."""
    alphas = np.geomspace(0.5, 64, 40)
    with figures.drawing(path, 8.5, 3.8, ncols=2, sharey=True) as (_, both):
        for axes, keep in zip(both, (0.5, 0.2), strict=True):
            for strategy, colour in (("hardest", figures.HARD), ("easiest", figures.EASY), ("random", figures.RANDOM)):
                axes.plot(alphas, _errors(alphas, keep, strategy=strategy), color=colour, label=strategy)
            figures.logarithmic(axes)
            figures.named(axes, "examples per dimension, α_tot", "test error", f"keep {keep:g} (Fig. 1B)")
            axes.legend()


def _figure_1c(path: Path) -> None:
    """The difference between keeping hard and easy examples."""
    alphas, keeps = np.geomspace(1, 64, 30), np.linspace(0.1, 0.95, 18)
    gain = np.array([_errors(alphas, float(keep)) - _errors(alphas, float(keep), strategy="easiest") for keep in keeps])
    with figures.drawing(path) as (figure, axes):
        limit = float(np.abs(gain).max())
        mesh = axes.pcolormesh(alphas, keeps, gain, cmap=figures.DIVERGING, vmin=-limit, vmax=limit, shading="gouraud")
        axes.contour(alphas, keeps, gain, levels=[0], colors="black")
        figures.logarithmic(axes, "x")
        figure.colorbar(mesh, ax=axes, label="error, hard − easy (blue: hard is better)")
        figures.named(axes, "examples per dimension, α_tot", "fraction kept", "Keep hard or easy examples (Fig. 1C)")


def _figure_1e(path: Path) -> None:
    """Accuracy by keep and alpha_prune, and the best keep."""
    alphas, keeps = np.linspace(0.2, 2.6, 40), np.geomspace(0.08, 1, 30)
    errors = np.array([_errors(alphas / keep, float(keep)) for keep in keeps])
    with figures.drawing(path) as (figure, axes):
        mesh = axes.pcolormesh(alphas, keeps, 1 - errors, cmap=figures.MAP, shading="gouraud")
        axes.plot(alphas, keeps[errors.argmin(axis=0)], color="white", lw=2, label="best keep")
        figures.logarithmic(axes, "y")
        figure.colorbar(mesh, ax=axes, label="test accuracy")
        figures.named(axes, "examples kept per dimension, α_prune", "fraction kept", "The best fraction to keep (Fig. 1E)")
        axes.legend(labelcolor="white", loc="lower left")


def _figure_1f(path: Path) -> None:
    """What each example tells, in nats."""
    alphas = np.concatenate([np.linspace(0.1, 4, 40), np.linspace(4.2, 8, 12)])
    with figures.drawing(path) as (_, axes):
        for colour, keep in zip(figures.COLOURS, (1.0, 0.5, 0.2, 0.1), strict=False):
            axes.plot(alphas, perceptron.information(alphas, keep), color=colour, label=f"keep {keep:g}")
        figures.logarithmic(axes, "y")
        figures.named(axes, "examples kept per dimension, α_prune", "information an example (nats)",
                      "Information gain, hard examples kept, θ = 0 (Fig. 1F)")  # fmt: skip
        axes.legend()


def _imperfect(theta: float, letter: str) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        alphas = np.geomspace(0.2, 12, 26)
        with figures.drawing(path) as (_, axes):
            for colour, keep in zip(figures.COLOURS, _KEEPS, strict=False):
                axes.plot(alphas, _errors(alphas / keep, keep, theta=np.radians(theta)), color=colour, label=f"keep {keep:g}")
            figures.logarithmic(axes)
            title = f"Hard examples kept by a probe at θ = {theta:g}° (Fig. 2{letter})"
            figures.named(axes, "examples kept per dimension, α_prune", "test error", title)
            axes.legend()

    return draw


FIGURES: dict[str, Callable[[Path], None]] = {
    "1a": _figure_1a, "1b": _figure_1b, "1c": _figure_1c, "1e": _figure_1e, "1f": _figure_1f,
    "2b": _imperfect(10, "B"), "2c": _imperfect(20, "C"), "2d": _imperfect(50, "D"),
}  # fmt: skip
