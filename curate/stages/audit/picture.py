"""The picture of an audit: what is kept of each group, beside what random selections keep."""

from pathlib import Path

import numpy as np

from curate import plotting
from curate.catalog.records import AuditGroupRecord, AuditRecord
from curate.formatting import printable
from curate.stages.audit.contributions import ALL, ALONE, KEPT, RANDOM, Contributions

_CURVE_COLOURS = {
    ALL: plotting.FULL,
    KEPT: plotting.EASY,
    RANDOM: plotting.RANDOM,
    ALONE: plotting.HARD,
}
_MAX_GROUPS = 40
_MAX_NAME = 28  # characters


def draw_groups(path: Path, record: AuditRecord, groups: list[AuditGroupRecord]) -> None:
    """Draw `path`.png and `path`.svg: the groups that keep least against random, from the top."""
    shown = groups[:_MAX_GROUPS]
    positions = np.arange(len(shown))[::-1]
    sizes = np.array([group.num_candidates for group in shown])
    kept = np.array([group.num_kept for group in shown]) / sizes
    random_shares = np.array([group.random_num_kept for group in shown]) / sizes
    colours = [plotting.HARD if group.is_below_floor else plotting.EASY for group in shown]
    with plotting.new_figure(path, 7.5, 1.9 + 0.22 * len(shown)) as (figure, axes):
        axes.barh(positions, kept, 0.7, color=colours)
        axes.plot(random_shares, positions, "|", color="black", ms=11, mew=1.6)
        axes.plot(
            record.floor * random_shares, positions, "|", color=plotting.RANDOM, ms=11, mew=1.6
        )
        names = [
            f"{printable(group.group_name, _MAX_NAME)} ({group.num_candidates:,})"
            for group in shown
        ]
        axes.set_yticks(positions, names, fontsize=8)
        for text, group in zip(axes.get_yticklabels(), shown, strict=True):
            if group.is_below_floor:  # its bar may have no length
                text.set_color(plotting.HARD)
        axes.set_axisbelow(True)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        title = f"{record.selection} by {record.grouped_by}"
        if len(groups) > len(shown):
            title += f": {len(shown)} of {len(groups):,} groups"
        plotting.label_axes(axes, "share kept of the group", "", title)
        plotting.caption(
            figure,
            "bars: the selection, orange where below the floor; black marks: random selections; "
            f"grey marks: the floor, {record.floor:g} of these",
        )


def draw_contributions(path: Path, selection: str, contributions: Contributions) -> None:
    """Draw `path`.png and `path`.svg: the more even contributions are, the higher the curves."""
    shares = {record.population: record.effective_share for record in contributions.records}
    with plotting.new_figure(path, 5.6, 4.4) as (figure, axes):
        axes.plot([0, 1], [0, 1], ":", color="black", lw=1, label="all alike")
        for population, curve in contributions.curves.items():
            axes.plot(
                np.linspace(0, 1, len(curve)),
                curve,
                color=_CURVE_COLOURS[population],
                label=f"{population}: effective share {shares[population]:.2g}",
            )
        axes.axhline(0, color="black", lw=0.6)
        axes.set_xlim(0, 1)
        plotting.label_axes(
            axes,
            "share of the samples, the least contributing first",
            "their sum, as a share of all absolute contributions",
            printable(selection, 2 * _MAX_NAME),
        )
        axes.legend(fontsize=8)
        plotting.caption(
            figure, "falling: samples that raise the held-out loss; rising: those that lower it"
        )
