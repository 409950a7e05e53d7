"""`curate theory`: what the perceptron theory of data pruning predicts, as numbers or figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from curate.errors import CurateError, OptionError
from curate.options import Option, verb
from curate.progress import announce, log
from curate.stages.theory import perceptron
from curate.stages.theory.figures import FIGURES


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
        announce(f"theory: computing figure {figure}")
        path = Path(out).expanduser().absolute() / f"theory-{figure}"
        note = FIGURES[figure](path)
        log.info("drew %s, and the same as SVG\n%s", path.with_name(f"{path.name}.png"), note)
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
