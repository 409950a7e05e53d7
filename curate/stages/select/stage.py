"""`curate select`: keep a fraction of the corpus by the scores, with class balance."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import (
    ClusteringRecord,
    EmbeddingRecord,
    ProbeRecord,
    ScoringRecord,
    SelectionRecord,
    SetRecord,
)
from curate.errors import CurateError, OptionError
from curate.execution.types import Resources
from curate.options import EmbeddingName, Option, Seed, SetName, Within, Workers, verb
from curate.progress import log
from curate.stages.evidence.smallest import find_smallest
from curate.stages.inputs.corpus import (
    ClusteringName,
    DistanceName,
    ProbeName,
    check_options,
)
from curate.stages.select.candidates import check_where
from curate.stages.select.drawing import Demand, copy_selection, draw_selection
from curate.stages.select.quotas import BASES
from curate.stages.select.strategy_inputs import (
    StrategyInputs,
    chooses_for_itself,
    needs_scores,
    strategy_options,
    strategy_parameters,
    takes_scores,
)
from curate.strategies import strategies

SCOPES = ("global", "class", "cluster")
GROUPS = ("label", "cluster", "none")
UNSCORED = ("last", "keep", "drop")
DEFAULT_BALANCE = 0.5
# What --balance-by is under each --scope that prunes every group equally.
_SCOPE_GROUPS = {"class": "label", "cluster": "cluster"}

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
    demand = Demand(settings, within, unscored, source_words, weights, repeats)
    return draw_selection(catalog, name, demand, inputs)


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


def _default_groups(catalog: Catalog) -> str:
    """label where there are labels, else cluster where there is a clustering, else none."""
    with catalog.reading() as connection:
        has_labels = connection.execute(
            "select 1 from samples where label is not null limit 1"
        ).fetchall()
    if has_labels:
        return "label"
    return "cluster" if catalog.list_names(ClusteringRecord) else "none"


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
