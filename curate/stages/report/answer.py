"""The answer of a report: which selection to train on, by what evidence, and what it saves."""

import math
import os
from dataclasses import dataclass, field

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord, ValidationRecord
from curate.errors import CurateError
from curate.formatting import format_duration
from curate.stages.evidence.comparisons import FULL
from curate.stages.evidence.smallest import Choice, find_smallest
from curate.stages.evidence.verdicts import Verdict, read_verdicts

_LINEAR = 2.0  # points up to which the scale of differences is linear
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100)
_MIN_TICK_DISTANCE = 9.0  # percent of the width
_PADDING = 4.0  # percent of the width, beside the outermost interval


@dataclass(frozen=True)
class IntervalRow:
    """A verdict with its interval: where it begins, ends and has its middle, in percent."""

    text: str
    low: float
    middle: float
    high: float
    is_alarming: bool
    is_chosen: bool


@dataclass(frozen=True)
class IntervalChart:
    """Differences in points with their 95% intervals, drawn by the page itself.

    `zero` and `margin` are where 0 and −margin lie, in percent of the width; `ticks` are a position
    and a text each.
    """

    title: str
    rows: list[IntervalRow]
    zero: float
    margin: float
    margin_text: str
    ticks: list[tuple[float, str]]
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """Two sentences, what the selection saves as (name, value, detail), and the picture.

    `selection` is the one that the page is about: the recommended one, else the newest, or None.
    """

    headline: str
    evidence: str
    selection: str | None
    is_decided: bool
    savings: list[tuple[str, str, str]] = field(default_factory=list)
    chart: IntervalChart | None = None
    alarms: list[str] = field(default_factory=list)
    command: str = ""


def find_answer(catalog: Catalog, selection: str | None = None) -> Answer:
    """The smallest selection without a loss beyond the margin; or undecided, and what decides it.

    `selection` is the one to show where another is asked for.
    """
    alarms = [
        verdict.text
        for validation in catalog.list_names(ValidationRecord)
        for verdict in read_verdicts(catalog, validation)
        if verdict.is_alarming
    ]
    try:
        choice = find_smallest(catalog)
    except CurateError as error:
        shown = selection or next(reversed(catalog.list_names(SelectionRecord)), None)
        message = str(error)
        return Answer(
            "Undecided: nothing shows yet what can be left out.",
            f"{message[0].upper()}{message[1:]}.",
            shown,
            is_decided=False,
            savings=_list_savings(catalog, shown, None) if shown else [],
            alarms=alarms,
        )
    name = choice.candidate.selection
    ((num_samples,),) = _query(catalog, "select count(*) from samples")
    share = choice.candidate.num_samples / max(num_samples, 1)
    if choice.is_shown:
        headline = (
            f"Keep {choice.candidate.num_samples:,} of {num_samples:,} images, {share:.0%}: "
            f"train on ‘{name}’."
        )
        evidence = (
            "It is the smallest selection that is shown to be good enough: "
            f"{choice.evidence.removesuffix(' points')} points of test accuracy against everything."
        )
    else:
        headline = (
            f"Undecided: no selection is shown to lose less than {choice.margin:g} "
            f"{'point' if choice.margin == 1 else 'points'}."
        )
        evidence = (
            f"The nearest is ‘{name}’ with {choice.candidate.num_samples:,} of {num_samples:,} "
            f"images ({share:.0%}), against everything: {choice.evidence}."
        )
    verdicts = read_verdicts(catalog, choice.candidate.validation)
    against_full = [verdict for verdict in verdicts if verdict.comparison.baseline == FULL]
    return Answer(
        headline,
        _keep_together(evidence),
        selection or name,
        is_decided=choice.is_shown,
        savings=_list_savings(catalog, name, choice),
        chart=make_chart("Against everything, in points of test accuracy", against_full, name),
        alarms=alarms,
        command=f"curate export {name} pruned -c {os.path.relpath(catalog.path)}"
        if choice.is_shown
        else "",
    )


def _list_savings(
    catalog: Catalog, selection: str, choice: Choice | None
) -> list[tuple[str, str, str]]:
    """What a selection saves: images, bytes, and where it was validated the time of training."""
    ((total, total_bytes, kept, kept_bytes),) = _query(
        catalog,
        "select count(*), coalesce(sum(num_bytes), 0), count(members.sample_id), "
        "coalesce(sum(num_bytes) filter (members.sample_id is not null), 0) from samples "
        "left join (select sample_id from members where selection = ?) as members "
        "using (sample_id)",
        selection,
    )
    savings = [
        ("images fewer", f"{total - kept:,}", f"{_share(total - kept, total)} of {total:,}"),
        (
            "bytes fewer",
            _format_megabytes(total_bytes - kept_bytes),
            f"{_share(total_bytes - kept_bytes, total_bytes)} of {_format_megabytes(total_bytes)}",
        ),
    ]
    if choice is None:
        return savings
    ((pruned, full),) = _query(
        catalog,
        "select avg(seconds) filter (arm = 'pruned' and selection = $1), "
        "avg(seconds) filter (arm = 'full') from training_runs where validation = $2",
        selection,
        choice.candidate.validation,
    )
    if pruned and full:
        savings.append(
            (
                "training time",
                f"{pruned / full:.0%}",
                f"{_format_seconds(pruned)} instead of {_format_seconds(full)}, "
                f"in the validation ‘{choice.candidate.validation}’",
            )
        )
    return savings


def make_chart(
    title: str, verdicts: list[Verdict], chosen: str | None = None, limit: int = 40
) -> IntervalChart | None:
    """A chart of verdicts on selections; None without any. The first `limit` are shown."""
    if not verdicts:
        return None
    note = f"The first {limit} of {len(verdicts)}." if len(verdicts) > limit else ""
    verdicts = verdicts[:limit]
    differences = [verdict.comparison for verdict in verdicts]
    margin = verdicts[0].margin
    low = min(0, -margin, *(row.difference - row.half_width for row in differences))
    high = max(0, *(row.difference + row.half_width for row in differences))
    first, last = _scale(low), _scale(high)
    width = (last - first) or 1.0

    def place(points: float) -> float:
        share = (_scale(points) - first) / width
        return round(_PADDING + (100 - 2 * _PADDING) * share, 2)

    rows = [
        IntervalRow(
            _keep_together(verdict.text),
            place(row.difference - row.half_width),
            place(row.difference),
            place(row.difference + row.half_width),
            verdict.is_alarming,
            row.selection == chosen,
        )
        for verdict, row in zip(verdicts, differences, strict=True)
    ]
    ticks: list[tuple[float, str]] = []
    candidates = sorted({sign * tick for tick in _TICKS for sign in (-1, 1)}, key=abs)
    for tick in (tick for tick in candidates if low <= tick <= high):
        position = place(tick)
        if all(abs(position - other) >= _MIN_TICK_DISTANCE for other, _ in ticks):
            ticks.append((position, f"{tick:+g}" if tick else "0"))
    return IntervalChart(
        title, rows, place(0), place(-margin), f"margin −{margin:g}", sorted(ticks), note
    )


def _keep_together(text: str) -> str:
    """A text on one line, whose numbers no line break parts from their intervals."""
    return " ".join(text.split()).replace(" ± ", "\u00a0±\u00a0")


def _scale(points: float) -> float:
    """Linear up to 2 points, logarithmic beyond: tenths and tens in one picture."""
    if abs(points) <= _LINEAR:
        return points
    return math.copysign(_LINEAR * (1 + math.log(abs(points) / _LINEAR)), points)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _format_megabytes(num_bytes: float) -> str:
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.1f} GB"
    return f"{num_bytes / 1e6:,.1f} MB"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else format_duration(seconds)


def _query(catalog: Catalog, sql: str, *parameters: object) -> list[tuple[float, ...]]:
    with catalog.reading() as connection:
        return connection.execute(sql, list(parameters)).fetchall()
