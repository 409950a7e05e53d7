"""Pictures: one style, safe for the colour-blind, written as PNG and as SVG."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HARD, EASY, RANDOM, FULL = COLOURS[1], COLOURS[0], "#7f7f7f", COLOURS[6]
MAP = "viridis"
DIVERGING = "RdBu_r"
# Labels come from strangers: a dollar sign in one is no formula.
_STYLE: dict[str, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 11,
    "figure.dpi": 100, "savefig.dpi": 150, "legend.frameon": False, "text.parse_math": False,
    "svg.hashsalt": "curate", "font.size": 10,
}  # fmt: skip


@contextlib.contextmanager
def drawing(path: Path, width: float = 6.4, height: float = 4.2, **subplots: Any) -> "Iterator[tuple[Figure, Any]]":
    """A figure and its axes, in inches; when the block ends well they are at `path`.png and `path`.svg."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**subplots)
        save(figure, path)


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as PNG and SVG, without a date, so that the same data give the same files."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with replacing(path.with_name(f"{path.name}.{kind}")) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glyphs that a font lacks
            figure.savefig(temporary, format=kind, metadata=metadata)


def logarithmic(axes: "Axes", which: str = "both") -> None:
    """Logarithmic scales with plain numbers at 1, 2 and 5; `which` is x, y or both."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def named(axes: "Axes", x: str, y: str, title: str = "") -> None:
    """Names, with units, for the axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left")
