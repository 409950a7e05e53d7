"""Candidates that a strategy cannot rank: those without a score, or without another input."""

from typing import Any

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError
from curate.progress import log
from curate.stages.select.candidates import Candidates, count_unscored
from curate.stages.select.strategy_inputs import StrategyInputs, takes_scores
from curate.stages.staleness import remake_command

# What becomes of samples without a score, in messages.
_UNSCORED_OUTCOMES = {
    "last": "they come last, whatever the strategy",
    "keep": "they are kept first",
    "drop": "they are no candidates",
}


def check_unscored(
    catalog: Catalog,
    scoring: ScoringRecord,
    candidates: Candidates,
    settings: dict[str, Any],
    unscored: str,
    all_candidates: str | None,
) -> None:
    """Say how many candidates, those of the condition `all_candidates`, have no score.

    CurateError where all of them are to be kept, and are more than --keep says.
    """
    keep = settings["keep"]
    num_kept = round(keep * len(candidates.sample_ids))
    if unscored == "drop":
        num_unscored = count_unscored(catalog, scoring.scoring, all_candidates)
    else:
        num_unscored = int(np.isnan(candidates.scores).sum())
    if takes_scores(settings["strategy"]) or unscored != "last":
        _log_unscored(catalog, scoring, num_unscored, unscored)
    if unscored == "keep" and num_unscored > num_kept:
        raise CurateError(
            f"--unscored keep: {num_unscored:,} samples have no score, and --keep {keep:g} "
            f"keeps {num_kept:,}: raise it, or take --unscored drop or last"
        )


def _log_unscored(
    catalog: Catalog, scoring: ScoringRecord, num_unscored: int, unscored: str
) -> None:
    """How many candidates have no score, what becomes of them, and the command that mends it."""
    if not num_unscored:
        return
    with catalog.reading() as connection:
        ((num_samples,),) = connection.execute("select count(*) from samples").fetchall()
    remedy = ""
    if num_samples > scoring.num_samples:
        remedy = f"; `{remake_command(catalog, scoring)}` scores those that came after it"
    log.warning(
        "%s samples have no score in '%s': %s%s",
        f"{num_unscored:,}",
        scoring.scoring,
        _UNSCORED_OUTCOMES[unscored],
        remedy,
    )


def log_unusable(inputs: StrategyInputs, num_unusable: int) -> None:
    """How many candidates lack what a strategy asks for beside scores, and so come last."""
    if inputs.sample_names and num_unusable:
        log.warning(
            "%s samples lack what %s asks for (%s): they come last",
            f"{num_unusable:,}",
            inputs.asker,
            ", ".join(inputs.sample_names),
        )


def restrict_to_scored(where: str | None, scoring: str) -> str:
    condition = f"{quote_identifier(scoring)} is not null"
    return f"{condition} and ({where}\n)" if where is not None else condition
