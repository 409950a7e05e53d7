"""What the comparisons of a validation say, in words."""

from pathlib import Path
from typing import NamedTuple

from curate.catalog.catalog import Catalog

ALARMING_LOSS = 2.0  # points of accuracy below random


class Verdict(NamedTuple):
    """What a comparison says of a selection; `is_alarming` where random does much better."""

    text: str
    is_alarming: bool


def read_verdicts(catalog: Catalog | str | Path, validation: str) -> list[Verdict]:
    """What a validation says, one line per selection, with 95% intervals."""
    with Catalog(catalog).reading() as connection:
        rows = connection.execute(
            "select selection, pruned, delta_vs_full, delta_vs_full_interval, "
            "delta_vs_random, delta_vs_random_interval, "
            "coalesce(selections.run_id > validations.run_id, false) "
            "from pruned_vs_random left join validations using (validation) "
            "left join selections using (selection) "
            "where validation = ? and delta_vs_full_interval is not null "
            "order by pruned_vs_random.keep desc, selection",
            [validation],
        ).fetchall()
    return [make_verdict(*row) for row in rows]


def make_verdict(
    selection: str,
    accuracy: float,
    loss: float,
    loss_interval: float,
    gain: float,
    gain_interval: float,
    is_replaced: bool = False,
) -> Verdict:
    """The verdict on differences in points, with the half widths of their intervals."""
    vs_full = "no loss found"
    if loss + loss_interval < 0:
        vs_full = "loses"
    elif loss - loss_interval > 0:
        vs_full = "gains"
    vs_random = "no difference from random found"
    if abs(gain) > gain_interval:
        vs_random = "beats random" if gain > 0 else "worse than random"
    text = (
        f"{selection}: {accuracy:.1f}% right; "
        f"against everything: {vs_full}, {loss:+.2f} ± {loss_interval:.2f} points; "
        f"{vs_random}, {gain:+.2f} ± {gain_interval:.2f}"
    )
    if is_replaced:
        text += ". The selection was made anew since: validate it again"
    is_alarming = gain + gain_interval < -ALARMING_LOSS
    if is_alarming:
        text += ". Do not train on this one: random samples do much better"
    return Verdict(text, is_alarming)
