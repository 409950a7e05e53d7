"""`curate select`: keep a fraction of the corpus by the scores, with class balance."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from curate.catalog import provenance, sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ClusteringRecord,
    EmbeddingRecord,
    ProbeRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.catalog.samples import are_members, find_known_shards, load_members
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.options import EmbeddingName, Option, Seed, SetName, Within, Workers, verb
from curate.progress import log
from curate.random_hash import random_bits
from curate.stages.evidence.smallest import find_smallest
from curate.stages.inputs.corpus import (
    ClusteringName,
    DistanceName,
    ProbeName,
    Source,
    check_options,
)
from curate.stages.select.candidates import (
    Candidates,
    check_where,
    count_unscored,
    load_candidates,
    load_group_names,
)
from curate.stages.select.changes import MembershipChanges, find_changes, store_changes
from curate.stages.select.guard import warn_of_nearly_lost_groups
from curate.stages.select.quotas import (
    BASES,
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
    needs_scores,
    strategy_options,
    strategy_parameters,
    takes_scores,
)
from curate.stages.select.weights import inverse_keep_weights
from curate.stages.staleness import remake_command, strategy_checksum, warn_if_stale
from curate.storage import files as storage
from curate.storage.checksums import Checksum
from curate.strategies import strategies

SCOPES = ("global", "class", "cluster")
GROUPS = ("label", "cluster", "none")
UNSCORED = ("last", "keep", "drop")
DEFAULT_BALANCE = 0.5
STRATEGY = "strategy"  # whose own strata the weights are by
# What becomes of samples without a score, in messages.
_UNSCORED_OUTCOMES = {
    "last": "they come last, whatever the strategy",
    "keep": "they are kept first",
    "drop": "they are no candidates",
}
# What --balance-by is under each --scope that prunes every group equally.
_SCOPE_GROUPS = {"class": "label", "cluster": "cluster"}

_MAX_GROUPS_SHOWN = 5

_DEFAULT_SCORING, _DEFAULT_STRATEGY = "ssl_prototypes", "hardest"
Balance = Annotated[
    float | None,
    Option(
        "Quota of each class, as a share of an equal pruning: 0 no quotas, 1 all classes equally.",
        minimum=0,
        maximum=1,
        default=f"{DEFAULT_BALANCE:g}; 0 for strategies that choose for themselves",
    ),
]
Repeats = Annotated[
    float | None,
    Option(
        "Let the best samples come several times in an epoch, the very best so many times on "
        "average, and others not at all: as many in all as without.",
        above=1,
        maximum=100,
        metavar="MAX",
    ),
]
Tolerance = Annotated[
    float, Option("The loss that is accepted, in points of accuracy: the margin.", above=0)
]


_NOT_WITH_AUTO = {
    "balance_by": None,
    "balance_base": "proportional",
    "scope": "global",
    "where": None,
    "skip_hardest": 0.0,
    "unscored": "last",
    "options": None,
    "embedding": None,
    "clustering": None,
    "probe": None,
    "distance": None,
    "weights": False,
    "repeats": None,
    "seed": 0,
}


def check_strategy(strategy: str) -> None:
    """OptionError for a strategy that does not exist."""
    strategies[strategy]


def _check_options(arguments: Mapping[str, Any]) -> None:
    scope = arguments["scope"]
    if scope in _SCOPE_GROUPS:
        is_equal = arguments["balance"] in (None, 1)
        if not is_equal or arguments["balance_by"] not in (None, _SCOPE_GROUPS[scope]):
            raise OptionError(
                f"--scope {scope} prunes every {scope} equally: "
                "leave out --balance and --balance-by"
            )
    if arguments["keep"] == "auto":
        excluded_names = [
            name for name, default in _NOT_WITH_AUTO.items() if arguments[name] != default
        ]
        if excluded_names:
            raise OptionError(
                "--keep auto takes a selection as it was validated: "
                f"leave out --{excluded_names[0].replace('_', '-')}"
            )
        return
    strategy = arguments["strategy"] or _DEFAULT_STRATEGY
    check_options(arguments["options"] or {}, strategy_options(strategy), f"'{strategy}' has none")
    uses_scores = arguments["skip_hardest"] > 0 or needs_scores(strategy)
    uses_scores |= takes_scores(strategy) and arguments["scoring"] is not None
    if arguments["unscored"] != "last" and not uses_scores:
        raise OptionError(f"the strategy '{strategy}' asks for no scores: leave out --unscored")
    if "survivor_distances" in strategy_parameters(strategy) and arguments["where"]:
        raise OptionError(
            f"--where: '{strategy}' deduplicates the whole corpus: select these samples first, "
            "then give that selection as --within"
        )
    if chooses_for_itself(strategy):
        _check_has_no_quotas(strategy, arguments)


def _check_has_no_quotas(strategy: str, arguments: Mapping[str, Any]) -> None:
    """OptionError for what only a ranking has, with a strategy that chooses for itself."""
    if arguments["repeats"]:
        raise OptionError(
            f"--repeats: '{strategy}' makes no ranking, by which the best samples would repeat: "
            "take a strategy that ranks, such as hardest"
        )
    remedies = {
        "balance": "leave it out, or let it choose in each class by --scope class",
        "skip_hardest": "leave it out, or narrow the candidates by --where",
    }
    for name, remedy in remedies.items():
        if arguments[name] and arguments["scope"] == "global":
            raise OptionError(
                f"--{name.replace('_', '-')}: '{strategy}' makes no ranking but chooses all "
                f"samples by itself: {remedy}"
            )
    if arguments["skip_hardest"]:
        raise OptionError(
            f"--skip-hardest: '{strategy}' makes no ranking: {remedies['skip_hardest']}"
        )
    if arguments["unscored"] == "keep":
        raise OptionError(
            f"--unscored keep: '{strategy}' chooses all samples by itself: take drop or last"
        )


@verb(check=_check_options)
def select(
    catalog: Catalog | str | Path,
    *,
    keep: Annotated[
        float | Literal["auto"],
        Option(
            "Fraction to keep; auto takes the smallest that `curate validate` supports.",
            above=0,
            maximum=1,
            metavar="F",
        ),
    ],
    scoring: Annotated[str | None, Option("Scoring to rank by.", default=_DEFAULT_SCORING)] = None,
    strategy: Annotated[
        str | None,
        Option(
            "Which samples to keep first; see `curate list strategies`.",
            default=_DEFAULT_STRATEGY,
            check=check_strategy,
        ),
    ] = None,
    balance: Balance = None,
    balance_by: Annotated[
        str | None,
        Option(
            "Groups that have quotas.", choices=GROUPS, default="label, or cluster without labels"
        ),
    ] = None,
    balance_base: Annotated[
        str, Option("Quotas in proportion to the size of a class, or uniform.", choices=BASES)
    ] = "proportional",
    scope: Annotated[
        str,
        Option(
            "Rank over all samples, or within each class or cluster "
            "(as --balance 1 by these groups).",
            choices=SCOPES,
        ),
    ] = "global",
    where: Annotated[
        str | None, Option("SQL condition on the view sample_scores.", metavar="SQL")
    ] = None,
    within: Within = None,
    skip_hardest: Annotated[
        float,
        Option(
            "Rank the hardest share of each class last: labels may be wrong there.",
            minimum=0,
            below=1,
        ),
    ] = 0.0,
    unscored: Annotated[
        str,
        Option(
            "Samples without a score: last, kept first and outside the ranking, or no candidates.",
            choices=UNSCORED,
        ),
    ] = "last",
    options: Annotated[
        dict[str, str] | None,
        Option(
            "An option of the strategy itself; repeatable.",
            metavar="NAME=VALUE",
            flag="--option",
            short="-o",
        ),
    ] = None,
    embedding: EmbeddingName = None,
    clustering: ClusteringName = None,
    probe: ProbeName = None,
    distance: DistanceName = None,
    tolerance: Annotated[
        float | None,
        Option(
            "The loss that --keep auto accepts, in points of accuracy.",
            above=0,
            default="the validation's",
        ),
    ] = None,
    weights: Annotated[
        bool,
        Option(
            "Give every kept sample a weight: the inverse of the share that is kept of its stratum "
            "(the strategy's own, else the group of --balance-by), 1 on average."
        ),
    ] = False,
    repeats: Repeats = None,
    seed: Seed = 0,
    workers: Workers = 1,
    name: SetName = None,
) -> str:
    """Keep a fraction of the corpus, exactly round(keep · n) samples; returns the selection's name.

    Every class of m samples keeps at least balance · keep · m of them, its quota: with balance 0.5
    and keep 0.8, a class of 500 keeps 200 at least. The rest of the budget goes to the highest
    priorities in any class. Without labels, clusters take the place of classes. `where` narrows the
    candidates by SQL, `within` by another selection; `keep` is then the fraction of these. Samples
    without a score come last, whatever the strategy and the balance, and so does the fraction
    `skip_hardest` of each class: they are kept only where the budget needs them. `unscored` keep
    keeps all samples without a score, and fills the rest of the budget with the others; drop takes
    the fraction of those that have a score. Strategies that choose the whole set for themselves
    (docs/strategies.md) have no quotas beside their own; with a `scope` they choose in each class
    by itself. `seed` breaks ties, and makes draws. `keep` auto takes the smallest
    selection that a validation of the same corpus (`within`) has shown to lose no more than
    `tolerance` points of accuracy against everything, of those with the given `scoring`,
    `strategy` and `balance`: fractions are tested from the largest down, at 95% divided by the
    number of kinds of selection. With `weights` every kept sample has a weight, by which a loss
    counts it in training (`curate.kept`, `curate validate --weights`): the inverse of the share
    that is kept of its stratum, so that weighted strata have the sizes that they have among the
    candidates. Strata are those that the strategy gives quotas, as coverage does to ranges of the
    score; else the classes or clusters of `balance_by`. With `repeats` the samples that would be
    kept get as many places in an epoch as they are, round(keep · n), but not one each: the best of
    a group is expected `repeats` times, the k-th of m samples m · ((1 − (k − 1)/m)^repeats −
    (1 − k/m)^repeats) times, so that each group has as many places as before. The numbers are drawn
    with the seed; a sample that gets no place is no member. The default name has the options that
    are not the defaults.
    """
    catalog = Catalog(catalog)
    if isinstance(keep, str):
        return _select_by_evidence(
            catalog,
            tolerance,
            name,
            within=within,
            scoring=scoring,
            strategy=strategy,
            balance=balance,
        )
    strategy = strategy or _DEFAULT_STRATEGY
    uses_scores = needs_scores(strategy) or skip_hardest > 0
    uses_scores |= takes_scores(strategy) and scoring is not None
    scoring = scoring or _DEFAULT_SCORING
    default_balance = 0.0 if chooses_for_itself(strategy) else DEFAULT_BALANCE
    balance = default_balance if balance is None else balance
    if uses_scores:
        catalog.require(ScoringRecord, scoring)
    named: tuple[tuple[type[SetRecord], str | None], ...] = (
        (EmbeddingRecord, embedding),
        (ClusteringRecord, clustering),
        (ProbeRecord, probe),
    )
    for record_type, option in named:
        if option is not None:
            catalog.require(record_type, option)
    inputs = StrategyInputs(
        catalog,
        f"the strategy '{strategy}'",
        strategy_parameters(strategy),
        embedding,
        clustering,
        probe,
        distance,
        seed,
        within,
        strategy_options(strategy),
        keep,
        Resources(workers),
    )
    inputs.options = inputs.parse_options(options or {})
    # Seed and selection have words of their own.
    option_labels = [
        option.label
        for option in inputs.given_options(options or {})
        if option.flag not in ("--seed", "--within") and option.label
    ]
    settings: dict[str, Any] = {
        "scoring": scoring if uses_scores else None,
        "strategy": strategy,
        "strategy_options": ", ".join(option_labels) or None,
        "keep": keep,
        "scope": scope,
        "balance": balance,
        "balance_by": balance_by,
        "balance_base": balance_base,
        "where_sql": where,
        "skip_hardest": skip_hardest,
        "seed": seed,
    }
    name = sets.check_name(
        name
        or _default_name(
            settings,
            within,
            unscored,
            default_balance,
            option_labels,
            weights=weights,
            repeats=repeats,
        )
    )
    settings |= _resolve_settings(catalog, settings, within)
    named_sources = {"--embedding": embedding, "--clustering": clustering, "--probe": probe}
    source_words = [
        word for flag, value in named_sources.items() if value for word in (flag, value)
    ]
    return draw_selection(
        catalog,
        name,
        settings,
        inputs,
        within=within,
        unscored=unscored,
        source_words=source_words,
        weights=weights,
        repeats=repeats,
    )


def draw_selection(
    catalog: Catalog,
    name: str,
    settings: dict[str, Any],
    inputs: StrategyInputs,
    *,
    within: str | None,
    unscored: str,
    source_words: list[str],
    weights: bool,
    repeats: float | None,
) -> str:
    """Draw the selection `name`, and return the name; what it changes is recorded and said.

    `settings` are those columns of the selection that say how it is drawn; the condition holds
    `within` already. `source_words` are flags and values of the sets that the strategy looks at,
    for the record of the run. Raises CurateError.
    """
    scoring, strategy, keep = settings["scoring"], settings["strategy"], settings["keep"]
    parent = catalog.require(ScoringRecord, scoring) if scoring else None
    all_candidates = settings["where_sql"]
    if unscored == "drop":
        settings = {**settings, "where_sql": _restrict_to_scored(all_candidates, scoring)}
    if weights and not chooses_for_itself(strategy):
        _check_has_strata(settings["balance_by"])
    known_shards = _find_known_shards(catalog, within)
    candidates = load_candidates(
        catalog,
        settings["scoring"],
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
        _check_unscored(catalog, parent, candidates, settings, unscored, all_candidates)
    code_checksum = strategy_checksum(strategy)
    # The scoring's fingerprint stands for its scores.
    content = [parent.fingerprint if parent else "", _candidates_checksum(candidates)]
    # The options themselves are among the arguments, with the defaults.
    arguments = {key: value for key, value in settings.items() if key != "strategy_options"}
    if unscored != "last":
        arguments["unscored"] = unscored
    source = Source(None, [], "")
    if inputs.reads_catalog:
        source = inputs.find_source()
        arguments = {**arguments, "source": source.name}
        content.append(source.content)
    if inputs.uses_vectors:
        arguments = {**arguments, "distance": inputs.distance}
    if inputs.options:
        arguments = {**arguments, "options": inputs.options}
    if weights:
        arguments = {**arguments, "weights": True}
    if repeats:
        arguments = {**arguments, "repeats": float(repeats)}
    fingerprint = provenance.fingerprint("select", arguments, *content, code_checksum)
    existing = catalog.find_up_to_date(SelectionRecord, name, fingerprint)
    if existing:
        log.info(
            "nothing to do: '%s' is this selection already (%s samples)",
            name,
            f"{existing.num_samples:,}",
        )
        return name
    previous = catalog.find(SelectionRecord, name)
    parents = [parent.run_id] if parent else []
    if within:
        parents.append(catalog.require(SelectionRecord, within).run_id)
    parents += [run_id for run_id in source.parents if run_id not in parents]
    with (
        catalog.record_run(
            "select",
            name,
            {**arguments, "given": source_words} if source_words else arguments,
            parents=parents,
            fingerprint=fingerprint,
            code_checksum=code_checksum,
        ) as run_id,
        catalog.temporary_folder() as folder,
        catalog.shared_tempdir(run_id) as shared_folder,
    ):
        record = SelectionRecord(
            selection=name,
            **settings,
            num_candidates=num_candidates,
            num_samples=num_kept,
            fingerprint=fingerprint,
            run_id=run_id,
            known_shards=known_shards,
        )
        if not storage.is_url(shared_folder):
            shared_folder = str(folder)
        gathered = inputs.gather(candidates, folder, shared_folder)
        _log_unusable(inputs, num_candidates - gathered.num_rows)
        choice = _draw(gathered, candidates, record, unscored)
        del gathered
        member_ids, member_weights, member_repeats = choice.member_ids, None, None
        if weights:
            record, member_weights = _weigh(record, candidates, choice)
        if repeats and choice.priorities is not None:
            all_repeats = _draw_repeats(candidates, choice.priorities, member_ids, repeats, record)
            is_member = all_repeats > 0
            member_ids, member_repeats = member_ids[is_member], all_repeats[is_member]
            member_weights = None if member_weights is None else member_weights[is_member]
            record = replace(record, num_samples=len(member_ids), repeats=repeats)
        changes = None
        if previous:
            changes = find_changes(
                previous,
                load_members(catalog, name),
                record,
                member_ids,
                candidates,
                choice.priorities,
                has_same_scores=_has_same_scores(catalog, previous, parent),
            )
        # What was ranked by takes 16 bytes per sample, which storing needs for the members.
        candidates, choice = (
            candidates._replace(scores=np.empty(0)),
            choice._replace(priorities=None),
        )
        _store(catalog, record, member_ids, member_weights, member_repeats, previous, changes)
    log.info(
        "selection '%s'%s: %s of %s samples%s%s",
        name,
        " replaced" if previous else "",
        f"{record.num_samples:,}",
        f"{num_candidates:,}",
        f", {num_kept:,} with repeats (up to {member_repeats.max()} of one)"
        if member_repeats is not None
        else "",
        f"; {changes.describe()}" if changes else "",
    )
    _warn_of_lost_groups(catalog, record, candidates, member_ids)
    warn_of_nearly_lost_groups(catalog, record, candidates, member_ids)
    return name


class _MemberChoice(NamedTuple):
    """The members' ids, int64 [k].

    Of all n candidates, where there is such a thing, what they were ranked by, float64 [n], and the
    strata of a strategy that gave quotas, int [n].
    """

    member_ids: np.ndarray
    priorities: np.ndarray | None
    strata: np.ndarray | None


def _draw(
    inputs: CandidateInputs, candidates: Candidates, record: SelectionRecord, unscored: str
) -> _MemberChoice:
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
        return _MemberChoice(candidates.sample_ids[choice.is_kept], None, choice.strata)
    priorities = rank(record.strategy, inputs, len(candidates.sample_ids))
    if record.skip_hardest:
        is_skipped = _find_hardest(candidates, record.skip_hardest, record.seed)
        priorities = np.where(is_skipped, np.nan, priorities)
    choose_by = _choose_after_unscored if unscored == "keep" else _choose_members
    return _MemberChoice(choose_by(candidates, priorities, record), priorities, None)


def _weigh(
    record: SelectionRecord, candidates: Candidates, choice: _MemberChoice
) -> tuple[SelectionRecord, np.ndarray]:
    """The record with the strata that weights are by, and the members' weights, float64 [k]."""
    if choice.strata is None:
        _check_has_strata(record.balance_by)
    weights_by = record.balance_by if choice.strata is None else STRATEGY
    strata = candidates.groups if choice.strata is None else choice.strata
    is_kept = are_members(candidates.sample_ids, choice.member_ids)
    return replace(record, weights_by=weights_by), inverse_keep_weights(strata, is_kept)


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


def _resolve_settings(
    catalog: Catalog, settings: dict[str, Any], within: str | None
) -> dict[str, Any]:
    """What the options mean in this catalog: the whole condition, the groups and their balance."""
    where, scope = settings["where_sql"], settings["scope"]
    if where is not None:
        check_where(catalog, where)
    if within:
        catalog.require(SelectionRecord, within)
        where = _restrict_to_selection(where, within)
    if scope in _SCOPE_GROUPS:
        return {"where_sql": where, "balance": 1.0, "balance_by": _SCOPE_GROUPS[scope]}
    return {"where_sql": where, "balance_by": settings["balance_by"] or _default_groups(catalog)}


def _default_name(
    settings: dict[str, Any],
    within: str | None,
    unscored: str,
    default_balance: float,
    option_labels: list[str],
    *,
    weights: bool,
    repeats: float | None,
) -> str:
    """Scoring, strategy, keep, and every option that is not the default: no two share a name."""
    where = settings["where_sql"]
    words = [
        settings["scoring"],
        settings["strategy"],
        f"{settings['keep']:.10g}",
        settings["scope"] if settings["scope"] != "global" else None,
        *option_labels,
        f"balance{settings['balance']:.10g}" if settings["balance"] != default_balance else None,
        f"by_{settings['balance_by']}" if settings["balance_by"] else None,
        settings["balance_base"] if settings["balance_base"] != "proportional" else None,
        f"where{hashlib.sha256(where.encode()).hexdigest()[:6]}" if where is not None else None,
        f"in-{within}" if within else None,
        f"skip{settings['skip_hardest']:.10g}" if settings["skip_hardest"] else None,
        f"unscored_{unscored}" if unscored != "last" else None,
        "weights" if weights else None,
        f"repeats{repeats:.10g}" if repeats else None,
        f"seed{settings['seed']}" if settings["seed"] else None,
    ]
    return "-".join(filter(None, words))


def _restrict_to_selection(where: str | None, within: str) -> str:
    condition = sets.members_condition(within)
    return f"{condition} and ({where}\n)" if where is not None else condition


def _restrict_to_scored(where: str | None, scoring: str) -> str:
    condition = f"{quote_identifier(scoring)} is not null"
    return f"{condition} and ({where}\n)" if where is not None else condition


def _check_unscored(
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


def _log_unusable(inputs: StrategyInputs, num_unusable: int) -> None:
    """How many candidates lack what a strategy asks for beside scores, and so come last."""
    if inputs.sample_names and num_unusable:
        log.warning(
            "%s samples lack what %s asks for (%s): they come last",
            f"{num_unusable:,}",
            inputs.asker,
            ", ".join(inputs.sample_names),
        )


def _warn_of_lost_groups(
    catalog: Catalog, record: SelectionRecord, candidates: Candidates, member_ids: np.ndarray
) -> None:
    """Say which classes or clusters have candidates and no member.

    Where one sample in two is kept, not every class of one can keep its sample.
    """
    if record.balance_by == "none":
        return
    is_kept = are_members(candidates.sample_ids, member_ids)
    num_candidates = count_groups(candidates.groups)
    num_kept = count_groups(candidates.groups[is_kept], len(num_candidates))
    lost = np.flatnonzero((num_candidates > 0) & (num_kept == 0)).tolist()
    if not lost:
        return
    names = load_group_names(catalog, record.balance_by, lost[:_MAX_GROUPS_SHOWN])
    log.warning(
        "%s of %s %s have no sample in '%s': %s%s; raise --keep, or %s",
        f"{len(lost):,}",
        f"{np.count_nonzero(num_candidates):,}",
        {"label": "classes", "cluster": "clusters"}[record.balance_by],
        record.selection,
        ", ".join(names),
        " …" if len(lost) > len(names) else "",
        "let the strategy choose in each by --scope"
        if chooses_for_itself(record.strategy)
        else "give each the same quota by --balance-base uniform",
    )


def _candidates_checksum(candidates: Candidates) -> str:
    checksum = Checksum()
    checksum.update(candidates.sample_ids.data)
    checksum.update(candidates.groups.data)
    return checksum.text


def _default_groups(catalog: Catalog) -> str:
    """label where there are labels, else cluster where there is a clustering, else none."""
    with catalog.reading() as connection:
        has_labels = connection.execute(
            "select 1 from samples where label is not null limit 1"
        ).fetchall()
    if has_labels:
        return "label"
    return "cluster" if catalog.list_names(ClusteringRecord) else "none"


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


def _check_has_strata(balance_by: str) -> None:
    if balance_by == "none":
        raise CurateError(
            "--weights: there are no groups to weight by; take --balance-by label or cluster "
            "(`curate cluster` makes clusters)"
        )


def _store(
    catalog: Catalog,
    record: SelectionRecord,
    member_ids: np.ndarray,
    member_weights: np.ndarray | None,
    member_repeats: np.ndarray | None,
    previous: SelectionRecord | None,
    changes: MembershipChanges | None,
) -> None:
    """Store the members; of a selection that is replaced, write only those that came and left.

    Weights and repeats depend on which others are kept: all members get them anew.
    """
    import pyarrow as pa

    columns: dict[str, np.ndarray] = {"sample_id": member_ids}
    if member_weights is not None:
        columns["weight"] = member_weights
    if member_repeats is not None:
        columns["repeats"] = member_repeats
    names = ", ".join(columns)
    with catalog.writing() as connection:
        stored = sets.find_set(connection, SelectionRecord, record.selection)
        if previous is None or changes is None or stored != previous:
            # New, or drawn by another process meanwhile.
            sets.replace_set(connection, record)
        else:
            if any(one.weights_by or one.repeats for one in (record, previous)):
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


def _select_by_evidence(
    catalog: Catalog,
    tolerance: float | None,
    name: str | None,
    *,
    within: str | None,
    scoring: str | None,
    strategy: str | None,
    balance: float | None,
) -> str:
    """The smallest selection validated without a loss beyond the tolerance; also as `name`."""
    choice = find_smallest(
        catalog, tolerance, within=within, scoring=scoring, strategy=strategy, balance=balance
    )
    selection, validation = choice.candidate.selection, choice.candidate.validation
    if not choice.is_shown:
        raise CurateError(
            f"no validated selection is shown to lose no more than {choice.margin:g} points; "
            f"nearest is '{selection}' ({choice.evidence}): "
            "keep more, add --seeds or test samples, or raise --tolerance"
        )
    corrected = ""
    if choice.num_chains > 1:
        corrected = f", at {100 * choice.level:g}% for {choice.num_chains} kinds of selection"
    log.info(
        "'%s' is the smallest that is shown to be good enough: %s against everything "
        "(validation '%s'%s)",
        selection,
        choice.evidence,
        validation,
        corrected,
    )
    if name not in (None, selection):
        copy_selection(catalog, catalog.require(SelectionRecord, selection), str(name))
    return name or selection


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
