"""Pictures in one style, safe for the colour-blind, written as PNG and as SVG."""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.storage.atomic import atomic_write
from curate.storage.locks import user_tempdir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HARD, EASY, RANDOM, FULL = COLOURS[1], COLOURS[0], "#7f7f7f", COLOURS[6]
SEQUENTIAL_MAP = "viridis"
# What stands on coloured cells is not exactly black or white, so that `to_dark` leaves it.
ON_LIGHT, ON_DARK = "#010101", "#fefefe"
# Paper, ink, grid lines and captions of an SVG, on a light page and on a dark one.
_DARK_COLOURS = {
    "#ffffff": "#1d2128",
    "#000000": "#e7e9ee",
    "#b0b0b0": "#5c6470",
    "#555555": "#a4acb8",
    "#cccccc": "#5c6470",
}
DIVERGING_MAP = "RdBu_r"
_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "legend.frameon": False,
    "text.parse_math": False,  # labels come from strangers: a dollar sign in one is no formula
    "svg.hashsalt": "curate",
    "font.size": 10,
}


def import_matplotlib() -> None:
    """Import it with its list of fonts among the temporary files, not in the user's home."""
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        return
    os.environ["MPLCONFIGDIR"] = str(user_tempdir() / "matplotlib")
    try:
        importlib.import_module("matplotlib.font_manager")
    finally:
        del os.environ["MPLCONFIGDIR"]


@contextlib.contextmanager
def new_figure(
    path: Path, width: float = 6.4, height: float = 4.2, **subplots: Any
) -> "Iterator[tuple[Figure, Any]]":
    """A figure and its axes, sizes in inches; at the block's good end saved by `save_figure`."""
    import_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**subplots)
        save_figure(figure, path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write `path`.png and `path`.svg, without dates: the same data give the same files."""
    formats: tuple[tuple[str, dict[str, Any]], ...] = (
        ("png", {"Software": None}),
        ("svg", {"Date": None}),
    )
    for extension, metadata in formats:
        target = path.with_name(f"{path.name}.{extension}")
        with atomic_write(target) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glyphs that a font lacks
            figure.savefig(temporary, format=extension, metadata=metadata)


def to_dark(svg: str) -> str:
    """A saved SVG in the colours of a dark page: paper, ink and grid; data keep their colours."""
    for light, dark in _DARK_COLOURS.items():
        svg = svg.replace(light, dark)
    # Text has no colour of its own where it is black.
    return svg.replace("<svg ", f'<svg fill="{_DARK_COLOURS["#000000"]}" ', 1)


def log_scale(axes: "Axes", which: str = "both") -> None:
    """Logarithmic scales with plain numbers at 1, 2 and 5; `which` is x, y or both."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))
            axis.set_minor_formatter(NullFormatter())


def _short_number(value: float) -> str:
    """For example 0.05, 200, 5k, 20M: as short as ticks must be."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def label_axes(axes: "Axes", x: str, y: str, title: str = "") -> None:
    """Labels, with units, for the axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left")


def caption(figure: "Figure", text: str) -> None:
    """Small text below the axes, such as what was computed."""
    figure.supxlabel(text, fontsize=7.5, color="#555555")


def sequential_colours(count: int) -> list[Any]:
    """Colours in an order, dark to light; the lightest, which white paper hides, is left out."""
    import_matplotlib()
    import matplotlib

    colour_map = matplotlib.colormaps[SEQUENTIAL_MAP]
    return [colour_map(0.9 * index / max(count - 1, 1)) for index in range(count)]


def symlog_points(axes: "Axes", which: str) -> None:
    """A scale for differences in points, tenths as well as tens; `which` is x or y."""
    set_scale, axis, limits = {
        "x": (axes.set_xscale, axes.xaxis, axes.get_xlim),
        "y": (axes.set_yscale, axes.yaxis, axes.get_ylim),
    }[which]
    set_scale("symlog", linthresh=2)
    axis.set_ticks(_point_ticks(*limits()), minor=False)
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _point_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 … on both sides of 0, as far as the axis goes; tenths where it ends before 1."""
    powers = range(3) if max(-low, high) > 1 else range(-1, 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = (*(-step for step in steps), 0.0, *steps)
    return [tick for tick in ticks if low <= tick <= high]
