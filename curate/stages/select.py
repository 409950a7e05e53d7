"""`curate select`: keep a fraction of the corpus by the scores, with class balance."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from curate import provenance, resources, sets, shuffle
from curate.catalog import Catalog
from curate.errors import CurateError
from curate.fingerprints import Fingerprint
from curate.progress import log
from curate.stages.candidates import Candidates, candidates
from curate.strategies import balance as balancing
from curate.strategies import strategies

SCOPES = ("global", "class", "cluster")
GROUPS = ("label", "cluster", "none")


def select(
    catalog: Catalog | str | Path,
    *,
    keep: float | str,
    scoring: str = "ssl_prototypes",
    strategy: str = "hardest",
    balance: float = 0.5,
    balance_by: str | None = None,
    balance_base: str = "proportional",
    scope: str = "global",
    where: str | None = None,
    within: str | None = None,
    skip_hardest: float = 0.0,
    tolerance: float = 0.5,
    seed: int = 0,
    name: str | None = None,
) -> str:
    """Keep the fraction `keep` of the corpus, exactly round(keep · n) samples, and return the selection's name.

    Every class keeps at least `balance` of the share it would have if all classes were pruned equally; the
    rest of the budget goes to the highest priorities anywhere. On an unlabelled corpus the groups are clusters.
    `scope` class or cluster prunes every group equally. `where` narrows the candidates by SQL over the view
    `sample_scores`, `within` by another selection; `keep` is then the fraction of these. Samples without a score come
    last, whatever the strategy and the balance, and so does the fraction `skip_hardest` of each group with the highest
    scores, which on a corpus with wrong labels are the wrong ones. `seed` breaks ties. `keep` auto takes the smallest
    selection, validated as it is (`within` the same corpus), whose 95% interval shows no loss beyond `tolerance` points of
    accuracy; the other options are those of the evidence. The default name tells the options that are not the defaults.
    """
    check(keep=keep, strategy=strategy, balance=balance, balance_by=balance_by, balance_base=balance_base, scope=scope,
          skip_hardest=skip_hardest, tolerance=tolerance)  # fmt: skip
    if isinstance(keep, str):
        if where or skip_hardest:
            raise CurateError("--keep auto takes a selection as it was validated: leave out --where and --skip-hardest")
        return _by_evidence(Catalog(catalog), tolerance, within, name)
    function = strategies[strategy]
    catalog = Catalog(catalog)
    by_score = "scores" in inspect.signature(function).parameters or skip_hardest > 0
    parent: dict[str, Any] = catalog.require("scoring", scoring) if by_score else {}
    settings: dict[str, Any] = {
        "scoring": scoring if by_score else None, "strategy": strategy, "keep": keep, "scope": scope,
        "balance": balance, "balance_by": balance_by, "balance_base": balance_base, "where_sql": where,
        "skip_hardest": skip_hardest, "seed": seed,
    }  # fmt: skip
    name = sets.check_name(name or _default_name(settings, within))
    if within:
        catalog.require("selection", within)
        inside = f"sample_id in (select sample_id from members where selection = {sets.literal(within)})"
        settings["where_sql"] = f"{inside} and ({where}\n)" if where else inside
    if scope != "global":
        settings |= {"balance": 1.0, "balance_by": {"class": "label"}.get(scope, scope)}
    settings["balance_by"] = settings["balance_by"] or _default_groups(catalog)
    found = candidates(catalog, settings)
    ids = found.sample_ids
    if round(keep * len(ids)) < 1:
        raise CurateError(f"--keep {keep:g} of {len(ids):,} candidates keeps no sample: raise it, or widen --where")
    if by_score:
        catalog.warn_if_out_of_date("scoring", scoring)
    content = Fingerprint()
    content.update(ids.data)
    content.update(found.groups.data)
    sources = (parent.get("fingerprint", ""), content.text, provenance.source(function))
    fingerprint = provenance.fingerprint("select", settings, *sources)
    made = catalog.made("selection", name, fingerprint)
    if made:
        log.info("nothing to do: '%s' is this selection already (%s samples)", name, f"{made['num_samples']:,}")
        return name
    old = catalog.head("selection", name)
    priorities = _priorities(function, found, seed)
    if skip_hardest:
        priorities = np.where(_hardest(found, skip_hardest, seed), np.nan, priorities)
    with catalog.run("select", name, settings, made_from=parent.get("run_id"), fingerprint=fingerprint) as run_id:
        head = {"selection": name, **settings, "num_candidates": len(ids), "fingerprint": fingerprint, "run_id": run_id}
        count = _commit(catalog, head, found, priorities)
    log.info("selection '%s'%s: %s of %s samples", name, " replaced" if old else "", f"{count:,}", f"{len(ids):,}")
    return name


def check(
    *, keep: float | str, strategy: str = "hardest", balance: float = 0.5, balance_by: str | None = None,
    balance_base: str = "proportional", scope: str = "global", skip_hardest: float = 0.0, tolerance: float = 0.5,
    **others: Any,
) -> None:  # fmt: skip
    """CurateError for options that cannot be, or that contradict each other."""
    strategies[strategy]
    if keep != "auto" and not (isinstance(keep, int | float) and 0 < keep <= 1):
        raise CurateError(f"--keep {keep!r}: give a fraction above 0 and up to 1, such as 0.8, or auto")
    if not 0 <= skip_hardest < 1:
        raise CurateError(f"--skip-hardest {skip_hardest:g}: give a fraction from 0 to below 1, such as 0.1")
    if tolerance < 0:
        raise CurateError(f"--tolerance {tolerance:g}: give points of accuracy, 0 or more")
    if not 0 <= balance <= 1:
        raise CurateError(f"--balance {balance:g}: give a number from 0 (off) to 1 (every class pruned equally)")
    for option, value, known in (
        ("--balance-by", balance_by, (None, *GROUPS)), ("--balance-base", balance_base, balancing.BASES),
        ("--scope", scope, SCOPES),
    ):  # fmt: skip
        if value not in known:
            raise CurateError(f"{option} {value}: choose one of {', '.join(filter(None, known))}")
    if scope != "global" and (balance not in (0.5, 1) or balance_by not in (None, {"class": "label"}.get(scope, scope))):
        raise CurateError(f"--scope {scope} prunes every {scope} equally: leave out --balance and --balance-by")


def _default_name(settings: dict[str, Any], within: str | None) -> str:
    """Scoring, strategy and keep; and every other option that is not the default, so that no two selections share a name."""
    where = settings["where_sql"]
    parts = [
        settings["scoring"],
        settings["strategy"],
        f"{settings['keep']:.10g}",
        settings["scope"] if settings["scope"] != "global" else None,
        f"balance{settings['balance']:.10g}" if settings["balance"] != 0.5 else None,
        f"by_{settings['balance_by']}" if settings["balance_by"] else None,
        settings["balance_base"] if settings["balance_base"] != "proportional" else None,
        f"where{hashlib.sha256(where.encode()).hexdigest()[:6]}" if where else None,
        f"in-{within}" if within else None,
        f"skip{settings['skip_hardest']:.10g}" if settings["skip_hardest"] else None,
        f"seed{settings['seed']}" if settings["seed"] else None,
    ]
    return "-".join(filter(None, parts))


def _by_evidence(catalog: Catalog, tolerance: float, within: str | None, name: str | None) -> str:
    """The smallest selection that was validated without a loss beyond `tolerance` points, also under the name `name`."""
    with catalog.reading() as connection:
        rows = connection.execute(resources.sql("stages/evidence"), {"tolerance": tolerance, "within": within}).fetchall()
    if not rows:
        of = f" --within {within}" if within else ""
        raise CurateError(f"no selection was validated yet: run `curate validate{of} --keep 0.8 --keep 0.5 --strategy hardest "
                          "--strategy easiest`")  # fmt: skip
    validation, selection, over_full, interval, lossless = rows[0]
    if not lossless:
        raise CurateError(f"no validated selection is sure to lose no more than {tolerance:g} points; nearest is '{selection}' "
                          f"({over_full:+.2f} ± {interval:.2f}): keep more, add --seeds, or raise --tolerance")  # fmt: skip
    log.info("'%s' is the smallest without a loss beyond %g points: %+.2f ± %.2f against everything (validation '%s')",
             selection, tolerance, over_full, interval, validation)  # fmt: skip
    if name not in (None, selection):
        _copy(catalog, catalog.require("selection", selection), sets.check_name(str(name)))
    return name or str(selection)


def _copy(catalog: Catalog, head: dict[str, Any], name: str) -> None:
    """The same members under another name: made anew they might be others, which nobody has validated."""
    if catalog.made("selection", name, head["fingerprint"]):
        return
    settings = {"selection": head["selection"]}
    with (
        catalog.run("select", name, settings, made_from=head["run_id"], fingerprint=head["fingerprint"]) as run_id,
        catalog.writing() as connection,
    ):
        sets.replace(connection, "selection", "members", {**head, "selection": name, "run_id": run_id})
        connection.execute("insert into members select ?, sample_id from members where selection = ?",
                           [name, head["selection"]])  # fmt: skip


def _hardest(found: Candidates, share: float, seed: int) -> np.ndarray:
    """The given share of each group's scored samples, those with the highest scores: bool [n]."""
    scored = np.flatnonzero(~np.isnan(found.scores))
    groups = found.groups[scored]
    order = np.lexsort((shuffle.random_bits(found.sample_ids[scored], seed), -found.scores[scored], groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    skipped = np.zeros(len(found.groups), bool)
    skipped[scored[order]] = place < np.repeat(np.floor(share * sizes), sizes)
    return skipped


def _default_groups(catalog: Catalog) -> str:
    """label where there are labels, else cluster where there is a clustering, else none."""
    with catalog.reading() as connection:
        if connection.execute("select 1 from samples where label is not null limit 1").fetchone():
            return "label"
    return "cluster" if catalog.names("clustering") else "none"


def _priorities(function: Any, found: Candidates, seed: int) -> np.ndarray:
    """The strategy's priorities, float64 [n]; NaN for samples without a score, which therefore come last."""
    inputs = inspect.signature(function).parameters
    scored: Any = ~np.isnan(found.scores) if "scores" in inputs else np.ones(len(found.scores), bool)
    count = int(scored.sum())
    if count < len(scored):
        log.warning("%s samples have no score: they come last, whatever the strategy", f"{len(scored) - count:,}")
    else:
        scored = slice(None)  # a view of all of them, not a copy
    known = {"scores": found.scores[scored], "sample_ids": found.sample_ids[scored], "seed": seed}
    unknown = [key for key in inputs if key not in known]
    if unknown:
        raise CurateError(f"the strategy asks for '{unknown[0]}', which is no input; there are: {', '.join(known)}")
    if not count:
        raise CurateError("no candidate has a score: choose another --scoring, or a --where that has some")
    given = np.asarray(function(**{key: known[key] for key in inputs}))
    if given.shape != (count,) or np.isnan(given).any():
        raise CurateError(f"the strategy gave no number for every one of {count} samples (shape {given.shape})")
    if count == len(found.scores):
        return np.asarray(given, np.float64)
    priorities = np.full(len(found.scores), np.nan)
    priorities[scored] = given
    return priorities


def _commit(catalog: Catalog, head: dict[str, Any], found: Candidates, priorities: np.ndarray) -> int:
    import pyarrow as pa

    total: int = round(head["keep"] * len(found.sample_ids))
    sizes = np.bincount(found.groups)
    # A floor secures samples with a score only.
    scored = sizes - np.bincount(found.groups[np.isnan(priorities)], minlength=len(sizes))
    floors = np.minimum(balancing.floors(sizes, head["keep"], head["balance"], head["balance_base"]), scored)
    kept = found.sample_ids[balancing.drawn(found.groups, priorities, found.sample_ids, floors, total, head["seed"])]
    if len(kept) != total:
        raise CurateError(f"the selection has {len(kept)} samples instead of {total}: please report this as a bug")
    with catalog.writing() as connection:
        sets.replace(connection, "selection", "members", {**head, "num_samples": total})
        connection.register("kept", pa.table({"sample_id": kept}))
        connection.execute("insert into members select $selection, sample_id from kept", {"selection": head["selection"]})
    return total
