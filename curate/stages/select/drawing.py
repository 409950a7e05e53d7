"""Drawing a selection: from candidates and what its strategy looks at to members in the catalog."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import ScoringRecord, SelectionRecord
from curate.catalog.samples import find_known_shards, load_members
from curate.errors import CurateError
from curate.formats.sample_ids import are_members
from curate.progress import log
from curate.random_hash import random_bits
from curate.stages.inputs.corpus import Source
from curate.stages.select.candidates import Candidates, load_candidates
from curate.stages.select.changes import MembershipChanges, find_changes, store_changes
from curate.stages.select.guard import warn_of_lost_groups, warn_of_nearly_lost_groups
from curate.stages.select.quotas import (
    count_groups,
    group_quotas,
    group_tiebreak,
    select_with_quotas,
)
from curate.stages.select.repeats import draw_repeats
from curate.stages.select.strategy_call import choose, rank
from curate.stages.select.strategy_inputs import (
    CandidateInputs,
    StrategyInputs,
    chooses_for_itself,
)
from curate.stages.select.unscored import check_unscored, log_unusable, restrict_to_scored
from curate.stages.select.weights import inverse_keep_weights
from curate.stages.staleness import strategy_checksum, warn_if_stale
from curate.storage import files as storage
from curate.storage.checksums import Checksum

_OF_STRATEGY = "strategy"  # the strata of weights, where they are the strategy's own


class Demand(NamedTuple):
    """What a selection is to be: `settings` are those of its columns that say how it is drawn.

    The condition among them holds `within` already. `source_words` are flags and values of the sets
    that the strategy looks at, for the record of the run.
    """

    settings: dict[str, Any]
    within: str | None
    unscored: str
    source_words: list[str]
    weights: bool
    repeats: float | None


class _Plan(NamedTuple):
    """What is drawn from, and by what the run is known."""

    settings: dict[str, Any]
    scoring: ScoringRecord | None
    candidates: Candidates
    num_kept: int
    known_shards: list[int] | None
    arguments: dict[str, Any]
    parents: list[int]
    fingerprint: str
    code_checksum: str


class _Choice(NamedTuple):
    """The sorted ids of the members, int64 [k].

    Of all n candidates, where there is such a thing, what they were ranked by, float64 [n], and the
    strata of a strategy that gave quotas, int [n].
    """

    member_ids: np.ndarray
    priorities: np.ndarray | None
    strata: np.ndarray | None


class _Members(NamedTuple):
    """The sorted ids int64 [k], with weights float64 [k] and repeats int64 [k] where asked for."""

    ids: np.ndarray
    weights: np.ndarray | None
    repeats: np.ndarray | None


def draw_selection(catalog: Catalog, name: str, demand: Demand, inputs: StrategyInputs) -> str:
    """Draw the selection `name`, and return the name; what it changes is recorded and said.

    Raises CurateError.
    """
    plan = _make_plan(catalog, demand, inputs)
    existing = catalog.find_up_to_date(SelectionRecord, name, plan.fingerprint)
    if existing:
        log.info(
            "nothing to do: '%s' is this selection already (%s samples)",
            name,
            f"{existing.num_samples:,}",
        )
        return name
    previous = catalog.find(SelectionRecord, name)
    arguments = plan.arguments
    if demand.source_words:
        arguments = {**arguments, "given": demand.source_words}
    with (
        catalog.record_run(
            "select",
            name,
            arguments,
            parents=plan.parents,
            fingerprint=plan.fingerprint,
            code_checksum=plan.code_checksum,
        ) as run_id,
        catalog.temporary_folder() as folder,
        catalog.shared_tempdir(run_id) as shared_folder,
    ):
        record = SelectionRecord(
            selection=name,
            **plan.settings,
            num_candidates=len(plan.candidates.sample_ids),
            num_samples=plan.num_kept,
            fingerprint=plan.fingerprint,
            run_id=run_id,
            known_shards=plan.known_shards,
        )
        if not storage.is_url(shared_folder):
            shared_folder = str(folder)
        gathered = inputs.gather(plan.candidates, folder, shared_folder)
        log_unusable(inputs, record.num_candidates - gathered.num_rows)
        choice = _choose(gathered, plan.candidates, record, demand.unscored)
        del gathered
        record, members = _make_members(record, demand, plan.candidates, choice)
        changes = None
        if previous:
            changes = find_changes(
                previous,
                load_members(catalog, name),
                record,
                members.ids,
                plan.candidates,
                choice.priorities,
                has_same_scores=_has_same_scores(catalog, previous, plan.scoring),
            )
        # What was ranked by takes 16 bytes per sample, which storing needs for the members.
        candidates = plan.candidates._replace(scores=np.empty(0))
        del plan, choice
        _store(catalog, record, members, previous, changes)
    _log_selection(record, members, changes, is_new=previous is None)
    warn_of_lost_groups(catalog, record, candidates, members.ids)
    warn_of_nearly_lost_groups(catalog, record, candidates, members.ids)
    return name


def _make_plan(catalog: Catalog, demand: Demand, inputs: StrategyInputs) -> _Plan:
    settings, scoring = demand.settings, demand.settings["scoring"]
    strategy, keep = settings["strategy"], settings["keep"]
    parent = catalog.require(ScoringRecord, scoring) if scoring else None
    all_candidates = settings["where_sql"]
    if demand.unscored == "drop":
        settings = {**settings, "where_sql": restrict_to_scored(all_candidates, scoring)}
    if demand.weights and not chooses_for_itself(strategy):
        _check_has_strata(settings["balance_by"])
    known_shards = _find_known_shards(catalog, demand.within)
    candidates = load_candidates(
        catalog,
        scoring,
        settings["balance_by"],
        settings["where_sql"],
        inputs.clustering_option,
    )
    num_candidates = len(candidates.sample_ids)
    num_kept = round(keep * num_candidates)
    if num_kept < 1:
        raise CurateError(
            f"--keep {keep:g} of {num_candidates:,} candidates keeps no sample: "
            "raise it, or widen --where"
        )
    if parent:
        warn_if_stale(catalog, parent)
        check_unscored(catalog, parent, candidates, settings, demand.unscored, all_candidates)
    source = inputs.find_source() if inputs.reads_catalog else Source(None, [], "")
    arguments = _list_arguments(demand, settings, inputs, source)
    code_checksum = strategy_checksum(strategy)
    # The scoring's fingerprint stands for its scores.
    content = [parent.fingerprint if parent else "", _candidates_checksum(candidates)]
    if inputs.reads_catalog:
        content.append(source.content)
    parents = [parent.run_id] if parent else []
    if demand.within:
        parents.append(catalog.require(SelectionRecord, demand.within).run_id)
    parents += [run_id for run_id in source.parents if run_id not in parents]
    return _Plan(
        settings,
        parent,
        candidates,
        num_kept,
        known_shards,
        arguments,
        parents,
        provenance.fingerprint("select", arguments, *content, code_checksum),
        code_checksum,
    )


def _list_arguments(
    demand: Demand, settings: dict[str, Any], inputs: StrategyInputs, source: Source
) -> dict[str, Any]:
    """The arguments of the run. What is not asked for is not among them."""
    # The options themselves are, with the defaults.
    arguments = {key: value for key, value in settings.items() if key != "strategy_options"}
    if demand.unscored != "last":
        arguments["unscored"] = demand.unscored
    if inputs.reads_catalog:
        arguments["source"] = source.name
    if inputs.uses_vectors:
        arguments["distance"] = inputs.distance
    if inputs.options:
        arguments["options"] = inputs.options
    if demand.weights:
        arguments["weights"] = True
    if demand.repeats:
        arguments["repeats"] = float(demand.repeats)
    return arguments


def _make_members(
    record: SelectionRecord, demand: Demand, candidates: Candidates, choice: _Choice
) -> tuple[SelectionRecord, _Members]:
    """The members with what is asked for beside, and the record that says of it."""
    member_ids, weights, repeats = choice.member_ids, None, None
    if demand.weights:
        record, weights = _weigh(record, candidates, choice)
    if demand.repeats and choice.priorities is not None:
        repeats = _draw_repeats(candidates, choice.priorities, member_ids, demand.repeats, record)
        is_member = repeats > 0
        member_ids, repeats = member_ids[is_member], repeats[is_member]
        weights = None if weights is None else weights[is_member]
        record = replace(record, num_samples=len(member_ids), repeats=demand.repeats)
    return record, _Members(member_ids, weights, repeats)


def _log_selection(
    record: SelectionRecord,
    members: _Members,
    changes: MembershipChanges | None,
    *,
    is_new: bool,
) -> None:
    repeated = ""
    if members.repeats is not None:
        num_presentations, largest = members.repeats.sum(), members.repeats.max()
        repeated = f", {num_presentations:,} with repeats (up to {largest} of one)"
    log.info(
        "selection '%s'%s: %s of %s samples%s%s",
        record.selection,
        "" if is_new else " replaced",
        f"{record.num_samples:,}",
        f"{record.num_candidates:,}",
        repeated,
        f"; {changes.describe()}" if changes else "",
    )


def _choose(
    inputs: CandidateInputs, candidates: Candidates, record: SelectionRecord, unscored: str
) -> _Choice:
    """Which candidates are kept, by the record's strategy and quotas. Raises CurateError."""
    if chooses_for_itself(record.strategy):
        choice = choose(
            record.strategy,
            inputs,
            candidates,
            keep=record.keep,
            scope=record.scope,
            base=record.balance_base,
            seed=record.seed,
        )
        return _Choice(candidates.sample_ids[choice.is_kept], None, choice.strata)
    priorities = rank(record.strategy, inputs, len(candidates.sample_ids))
    if record.skip_hardest:
        is_skipped = _find_hardest(candidates, record.skip_hardest, record.seed)
        priorities = np.where(is_skipped, np.nan, priorities)
    choose_by = _choose_after_unscored if unscored == "keep" else _choose_members
    return _Choice(choose_by(candidates, priorities, record), priorities, None)


def _choose_members(
    candidates: Candidates, priorities: np.ndarray, record: SelectionRecord
) -> np.ndarray:
    """The ids of the samples to keep, int64: each group's quota, then the highest priorities."""
    groups, sample_ids = candidates.groups, candidates.sample_ids
    sizes = count_groups(groups)
    # A quota is filled with samples that have a score only.
    num_scored = sizes - np.bincount(groups[np.isnan(priorities)], minlength=len(sizes))
    tiebreak = group_tiebreak(groups, sample_ids, record.seed)
    quotas = group_quotas(sizes, record.keep, record.balance, record.balance_base, tiebreak)
    quotas = np.minimum(quotas, num_scored)
    is_kept = select_with_quotas(
        groups, priorities, sample_ids, quotas, record.num_samples, record.seed
    )
    member_ids = sample_ids[is_kept]
    if len(member_ids) != record.num_samples:
        raise CurateError(
            f"the selection has {len(member_ids)} samples instead of {record.num_samples}: "
            "please report this as a bug"
        )
    return np.asarray(member_ids)


def _choose_after_unscored(
    candidates: Candidates, priorities: np.ndarray, record: SelectionRecord
) -> np.ndarray:
    """All candidates without a score, and of the others as many as are left to keep."""
    is_scored = ~np.isnan(candidates.scores)
    unscored_ids = candidates.sample_ids[~is_scored]
    scored = Candidates(*(column[is_scored] for column in candidates))
    num_left = record.num_samples - len(unscored_ids)
    share = num_left / max(len(scored.sample_ids), 1)
    rest = replace(record, keep=share, num_samples=num_left)
    chosen_ids = _choose_members(scored, priorities[is_scored], rest)
    return np.sort(np.concatenate([unscored_ids, chosen_ids]))


def _find_hardest(candidates: Candidates, share: float, seed: int) -> np.ndarray:
    """The given share of each group's scored samples with the highest scores: bool [n]."""
    scored = np.flatnonzero(~np.isnan(candidates.scores))
    groups, scores = candidates.groups[scored], candidates.scores[scored]
    tiebreak = random_bits(candidates.sample_ids[scored], seed)
    order = np.lexsort((tiebreak, -scores, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    is_hardest = np.zeros(len(candidates.groups), bool)
    is_hardest[scored[order]] = rank < np.repeat(np.floor(share * sizes), sizes)
    return is_hardest


def _weigh(
    record: SelectionRecord, candidates: Candidates, choice: _Choice
) -> tuple[SelectionRecord, np.ndarray]:
    """The record with the strata that weights are by, and the members' weights, float64 [k]."""
    if choice.strata is None:
        _check_has_strata(record.balance_by)
    weights_by = record.balance_by if choice.strata is None else _OF_STRATEGY
    strata = candidates.groups if choice.strata is None else choice.strata
    is_kept = are_members(candidates.sample_ids, choice.member_ids)
    return replace(record, weights_by=weights_by), inverse_keep_weights(strata, is_kept)


def _check_has_strata(balance_by: str) -> None:
    if balance_by == "none":
        raise CurateError(
            "--weights: there are no groups to weight by; take --balance-by label or cluster "
            "(`curate cluster` makes clusters)"
        )


def _draw_repeats(
    candidates: Candidates,
    priorities: np.ndarray,
    member_ids: np.ndarray,
    most: float,
    record: SelectionRecord,
) -> np.ndarray:
    """How often each of the sorted members comes in an epoch: int64 [k]."""
    is_kept = are_members(candidates.sample_ids, member_ids)
    return draw_repeats(
        priorities[is_kept],
        candidates.groups[is_kept],
        candidates.sample_ids[is_kept],
        most,
        record.seed,
    )


def _has_same_scores(
    catalog: Catalog, previous: SelectionRecord, scoring: ScoringRecord | None
) -> bool:
    """Whether samples that a selection was drawn from have the scores that they had.

    Updates of a scoring leave them.
    """
    if scoring is None:
        return True
    with catalog.reading() as connection:
        states = sets.list_update_run_ids(connection, scoring.run_id)
        rows = connection.execute(
            "select 1 from runs where run_id = ? and list_has_any(parent_run_ids, ?)",
            [previous.run_id, states],
        ).fetchall()
    return bool(rows)


def _find_known_shards(catalog: Catalog, within: str | None) -> list[int] | None:
    """The shards that there are to select from: those of the selection `within`, or all."""
    if within:
        return catalog.require(SelectionRecord, within).known_shards
    with catalog.reading() as connection:
        return find_known_shards(connection)


def _candidates_checksum(candidates: Candidates) -> str:
    checksum = Checksum()
    checksum.update(candidates.sample_ids.data)
    checksum.update(candidates.groups.data)
    return checksum.text


def _store(
    catalog: Catalog,
    record: SelectionRecord,
    members: _Members,
    previous: SelectionRecord | None,
    changes: MembershipChanges | None,
) -> None:
    """Store the members; of a selection that is replaced, write only those that came and left.

    Weights and repeats depend on which others are kept: all members get them anew.
    """
    import pyarrow as pa

    columns: dict[str, np.ndarray] = {"sample_id": members.ids}
    if members.weights is not None:
        columns["weight"] = members.weights
    if members.repeats is not None:
        columns["repeats"] = members.repeats
    names = ", ".join(columns)
    with catalog.writing() as connection:
        stored = sets.find_set(connection, SelectionRecord, record.selection)
        if previous is None or changes is None or stored != previous:
            # New, or drawn by another process meanwhile.
            sets.replace_set(connection, record)
        else:
            if any(drawn.weights_by or drawn.repeats for drawn in (record, previous)):
                left = "true"
            else:
                left_ids = changes.sample_ids[~changes.has_come]
                connection.register("leaving", pa.table({"sample_id": left_ids}))
                left = "sample_id in (select sample_id from leaving)"
                columns["sample_id"] = changes.sample_ids[changes.has_come]
            connection.execute(
                f"delete from members where selection = ? and {left}", [record.selection]
            )
            connection.execute("delete from selections where selection = ?", [record.selection])
            sets.insert_row(connection, record.table, record.to_dict())
            store_changes(connection, record, changes)
        connection.register("selected", pa.table(columns))
        connection.execute(
            f"insert into members (selection, {names}) select $selection, {names} from selected",
            {"selection": record.selection},
        )


def copy_selection(catalog: Catalog, record: SelectionRecord, name: str) -> None:
    """The same members under another name: selected again they might be others, not validated."""
    name = sets.check_name(name)
    if catalog.find_up_to_date(SelectionRecord, name, record.fingerprint):
        return
    settings = {"selection": record.selection, "strategy": record.strategy}
    with (
        catalog.record_run(
            "select", name, settings, parents=[record.run_id], fingerprint=record.fingerprint
        ) as run_id,
        catalog.writing() as connection,
    ):
        sets.replace_set(connection, replace(record, selection=name, run_id=run_id))
        connection.execute(
            "insert into members (selection, sample_id, weight, repeats) "
            "select ?, sample_id, weight, repeats from members where selection = ?",
            [name, record.selection],
        )
