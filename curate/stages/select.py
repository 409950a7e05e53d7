"""`curate select`: keep a fraction of the corpus by the scores, with class balance."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from curate import provenance, resources, shuffle
from curate.catalog import Catalog, check_name, replace_set
from curate.errors import CurateError
from curate.progress import log
from curate.strategies import balance as balancing
from curate.strategies import strategies

SCOPES = ("global", "class", "cluster")


def select(
    catalog: Catalog | str | Path,
    *,
    keep: float,
    scoring: str = "ssl_prototypes",
    strategy: str = "hardest",
    balance: float = 0.5,
    balance_by: str | None = None,
    balance_base: str = "proportional",
    scope: str = "global",
    where: str | None = None,
    seed: int = 0,
    name: str | None = None,
) -> str:
    """Keep the fraction `keep` of the corpus, exactly round(keep · n) samples, and return the selection's name.

    Every class keeps at least `balance` of the share it would have if all classes were pruned equally; the
    rest of the budget goes to the highest priorities anywhere. On an unlabelled corpus the groups are clusters.
    `scope` class or cluster prunes every group equally. `where` narrows the candidates: SQL over the view
    `sample_scores`; `keep` is then the fraction of these. Samples without a score come last. `seed` breaks ties.
    """
    _check(keep, balance, balance_base, scope)
    function = strategies[strategy]
    catalog = Catalog(catalog)
    by_score = "scores" in inspect.signature(function).parameters
    parent: dict[str, Any] = catalog.require("scoring", scoring) if by_score else {"fingerprint": "", "source": None}
    if scope != "global":
        balance, balance_by = 1.0, {"class": "label"}.get(scope, scope)
    name = check_name(name or "-".join(filter(None, (scoring if by_score else "", strategy, f"{keep:g}"))))
    groups = balance_by or _default_groups(catalog)
    clustering = _clustering(catalog, parent["source"]) if groups == "cluster" else None
    settings = {"keep": keep, "scoring": scoring if by_score else None, "strategy": strategy, "balance": balance,
                "balance_by": groups, "balance_base": balance_base, "where": where, "seed": seed}  # fmt: skip
    rows = _candidates(catalog, scoring if by_score else None, groups, clustering, where)
    ids = np.asarray(rows["sample_id"], np.int64)
    if round(keep * len(ids)) < 1:
        raise CurateError(f"--keep {keep:g} of {len(ids):,} candidates keeps no sample: raise it, or widen --where")
    fingerprint = provenance.fingerprint("select", settings, parent["fingerprint"], _content(ids, rows["group_id"]))
    old = catalog.head("selection", name)
    if old and old["fingerprint"] == fingerprint:
        log.info("nothing to do: '%s' is this selection already (%s samples)", name, f"{old['num_samples']:,}")
        return name
    priorities = _priorities(function, rows, ids, seed)
    with catalog.run("select", {**settings, "name": name}) as run_id:
        head = {"selection": name, "scoring": settings["scoring"], "strategy": strategy, "keep": keep, "balance": balance,
                "balance_by": groups, "balance_base": balance_base, "where_sql": where, "seed": seed,
                "num_candidates": len(ids), "fingerprint": fingerprint, "run_id": run_id}  # fmt: skip
        count = _commit(catalog, head, rows, ids, priorities)
    log.info("selection '%s': %s of %s samples", name, f"{count:,}", f"{len(ids):,}")
    return name


def _check(keep: float, balance: float, base: str, scope: str) -> None:
    if not 0 < keep <= 1:
        raise CurateError(f"--keep {keep:g}: give a fraction above 0 and up to 1, such as 0.8")
    if not 0 <= balance <= 1:
        raise CurateError(f"--balance {balance:g}: give a number from 0 (off) to 1 (every class pruned equally)")
    for option, value, known in (("--balance-base", base, balancing.BASES), ("--scope", scope, SCOPES)):
        if value not in known:
            raise CurateError(f"{option} {value}: choose one of {', '.join(known)}")


def _default_groups(catalog: Catalog) -> str:
    """label where there are labels, else cluster where there is a clustering, else none."""
    with catalog.reading() as connection:
        if connection.execute("select 1 from samples where label is not null limit 1").fetchone():
            return "label"
    return "cluster" if catalog.names("clustering") else "none"


def _clustering(catalog: Catalog, source: str | None) -> str:
    """The clustering that the scoring was made from, else the newest."""
    names = catalog.names("clustering")
    if not names:
        raise CurateError("the catalog has no clustering yet: make one with `curate cluster`")
    return source if source in names else names[-1]


def _candidates(
    catalog: Catalog, scoring: str | None, groups: str, clustering: str | None, where: str | None
) -> dict[str, np.ndarray]:
    """sample_id, group_id and score (masked where NULL) of every candidate, in order of sample_id."""
    if groups == "label":
        group = "coalesce(dense_rank() over (order by label nulls last), 0)"
    elif groups in ("cluster", "none"):
        group = "coalesce(cluster_id, -1)" if groups == "cluster" else "0"
    else:
        raise CurateError(f"--balance-by {groups}: choose one of label, cluster, none")
    # On a guarded read-only connection, because `where` is free text.
    with catalog.reading(guarded=True) as connection:
        import duckdb

        try:
            return connection.execute(
                f"select samples.sample_id, {group} as group_id, score from samples "
                "left join (select sample_id, score from scores where scoring = $scoring) using (sample_id) "
                "left join (select sample_id, cluster_id from assignments where clustering = $clustering) using (sample_id) "
                f"where sample_id in (select sample_id from sample_scores where ({where or 'true'}\n)) order by sample_id",
                {"scoring": scoring, "clustering": clustering},
            ).fetchnumpy()
        except duckdb.Error as error:
            if where is None:
                raise
            reason = str(error).splitlines()[0]
            raise CurateError(f"--where {where!r}: {reason}; columns: `curate query 'describe sample_scores'`") from error


def _content(ids: np.ndarray, groups: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(ids.tobytes() + np.asarray(groups, np.int64).tobytes()).hexdigest()


def _priorities(function: Any, rows: dict[str, np.ndarray], ids: np.ndarray, seed: int) -> np.ndarray:
    """The strategy's priorities; NaN for samples without a score, which therefore come last."""
    inputs = inspect.signature(function).parameters
    scores = np.ma.filled(np.ma.asarray(rows["score"], np.float64), np.nan)
    scored = ~np.isnan(scores) if "scores" in inputs else np.ones(len(ids), bool)
    if not scored.all():
        log.warning("%s samples have no score: they come last, whatever the strategy", f"{int((~scored).sum()):,}")
    known = {"scores": scores[scored], "sample_ids": ids[scored], "seed": seed}
    unknown = [key for key in inputs if key not in known]
    if unknown:
        raise CurateError(f"the strategy asks for '{unknown[0]}', which is no input; there are: {', '.join(known)}")
    priorities = np.full(len(ids), np.nan)
    priorities[scored] = function(**{key: known[key] for key in inputs})
    return priorities


def _commit(
    catalog: Catalog, head: dict[str, Any], rows: dict[str, np.ndarray], ids: np.ndarray, priorities: np.ndarray
) -> int:
    import pyarrow as pa

    codes, sizes = np.unique(np.asarray(rows["group_id"], np.int64), return_counts=True)
    floors = balancing.floors(sizes, head["keep"], head["balance"], head["balance_base"])
    total: int = round(head["keep"] * len(ids))
    with catalog.writing() as connection:
        replace_set(connection, "selection", "members", {**head, "num_samples": total})
        connection.register("floors", pa.table({"group_id": codes, "floor": floors}))
        connection.register("priorities", pa.table({
            "sample_id": ids,
            "group_id": np.asarray(rows["group_id"], np.int64),
            "priority": pa.array(priorities, mask=np.isnan(priorities)),
            "tiebreak": shuffle.random_bits(ids, head["seed"]),
        }))  # fmt: skip
        rest = total - int(floors.sum())
        connection.execute(resources.sql("stages/select"), {"selection": head["selection"], "rest": rest})
        counts = connection.execute("select count(*) from members where selection = ?", [head["selection"]]).fetchone()
        if counts != (total,):
            raise CurateError(f"the selection has {counts} samples instead of {total}: please report this as a bug")
    return total
