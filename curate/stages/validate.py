"""`curate validate`: train small models on selections, on as many samples drawn at random and on everything, and compare."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import corpus, engine, models, provenance, sets
from curate.catalog import Catalog
from curate.engine import Resources, inference
from curate.errors import CurateError
from curate.progress import bar, log
from curate.stages import material
from curate.stages.select import select
from curate.strategies import strategies

SCHEDULES = ("epochs", "iterations")
ALARMING = 2.0  # points of accuracy below random


def validate(
    catalog: Catalog | str | Path,
    selections: list[str] | None = None,
    *,
    keep: list[float] | float | None = None,
    strategy: list[str] | str | None = None,
    scoring: str | None = None,
    balance: float = 0.5,
    model: str = "mlp",
    seeds: int = 5,
    epochs: int | None = None,
    schedule: str = "epochs",
    within: str | None = None,
    test: list[str] | str | None = None,
    transfer: list[str] | str | None = None,
    embedding: str | None = None,
    seed: int = 0,
    device: str = "auto",
    name: str | None = None,
) -> str:
    """Compare selections with random ones of the same size and balance, and with the whole corpus; return the name.

    The selections are those named, or those of the grid `keep` × `strategy` (hardest) by `scoring` (ssl_prototypes), which
    are made, or all that the catalog has. `seeds` models train in each arm, paired by seed. `schedule` epochs trains every
    arm for as many passes; iterations for as many steps as the whole corpus gets. `within` names a selection that is all the
    corpus for this comparison. Tested on the shards `test`, or on a fifth of the corpus held out by a hash of the keys. With
    the shards of another task in `transfer`, every model is then fine-tuned on that task and tested for it (Fig. 4B). Each
    training is kept when it ends, so that the same command goes on after an interruption.
    """
    keeps = [keep] if isinstance(keep, int | float) else list(keep or [])
    chosen = [strategy] if isinstance(strategy, str) else list(strategy or ["hardest"])
    check(keep=keeps, strategy=strategy, scoring=scoring, model=model, seeds=seeds, epochs=epochs, schedule=schedule)
    device, gpus = inference.devices(device)
    catalog = Catalog(catalog)
    parent = catalog.require("embedding", embedding)
    embedding = str(parent["embedding"])
    names = [*(selections or [])]
    names += [select(catalog, keep=one, scoring=scoring or "ssl_prototypes", strategy=other, balance=balance, within=within)
              for one in keeps for other in chosen]  # fmt: skip
    names = list(dict.fromkeys(names or catalog.names("selection")))
    heads = [catalog.require("selection", one) for one in names or [None]]  # type: ignore[list-item]
    beside = "transfer" if transfer else "test"  # test shards are of the task that is tested
    others = [material.embed_beside(catalog, parent, [urls] if isinstance(urls, str) else urls, beside) if urls else None
              for urls in (test, transfer)]  # fmt: skip
    plan = Plan(model, seeds, epochs, schedule, seed, within, *(made[1] if made else [] for made in others))
    if others[0]:
        material.check_apart(others[1] or (catalog, None), others[0])
    settings = {"embedding": embedding, "selections": names, **plan._asdict()}
    content = [head["fingerprint"] for head in heads] + [catalog.embedding_fingerprint(embedding)]
    content += [made[0].embedding_fingerprint(embedding) for made in others if made]
    content += [catalog.require("selection", within)["fingerprint"]] if within else []
    code = provenance.source(models.models[model.partition(":")[0]])
    fingerprint = provenance.fingerprint("validate", settings, *content, code)
    name = sets.check_name(name or _default_name(model, schedule, within, transfer))
    old = catalog.head("validation", name)
    if old and old["fingerprint"] == fingerprint and len(_done(catalog, name)) == old["num_trainings"]:
        log.info("nothing to do: '%s' is this validation already (%s trainings)", name, old["num_trainings"])
    else:
        with (
            catalog.only_writer(catalog.path / "validations" / name, f"the validation '{name}'"),
            catalog.run(
                "validate", name, settings, made_from=heads[0]["run_id"], fingerprint=fingerprint, device=device
            ) as run,
        ):
            head = {"validation": name, "embedding": embedding, "model": model, "schedule": schedule, "seeds": seeds,
                    "seed": seed, "test": plan.test, "transfer": plan.transfer, "fingerprint": fingerprint,
                    "run_id": run}  # fmt: skip
            _compare(catalog, head, plan, heads, Resources(max(len(gpus), 1), 1, gpus), device)
    for line in verdicts(catalog, name):
        (log.warning if line.alarming else log.info)("%s", line.text)
    return name


class Plan(NamedTuple):
    """How every arm is trained, and the urls of the test shards and of another task's."""

    model: str
    seeds: int
    epochs: int | None
    schedule: str
    seed: int
    within: str | None
    test: list[str]
    transfer: list[str]


class Verdict(NamedTuple):
    """What a comparison says of one selection, in a line; `alarming` where it does much worse than random."""

    text: str
    alarming: bool


def check(
    *, keep: list[float] | float | None = None, strategy: list[str] | str | None = None, scoring: str | None = None,
    model: str = "mlp", seeds: int = 5, epochs: int | None = None, schedule: str = "epochs", **others: Any,
) -> None:  # fmt: skip
    """CurateError for options that cannot be."""
    if not keep and (strategy or scoring):
        raise CurateError("--strategy and --scoring say what is selected for --keep: give that too, such as --keep 0.8")
    for one in [strategy] if isinstance(strategy, str) else strategy or []:
        strategies[one]
    for fraction in [keep] if isinstance(keep, int | float) else keep or []:
        if not 0 < fraction <= 1:
            raise CurateError(f"--keep {fraction:g}: give a fraction above 0 and up to 1, such as 0.8")
    if models.make(model).build is None:
        raise CurateError(f"the model '{model}' is solved in closed form: validate with one that is trained, such as mlp")
    if schedule not in SCHEDULES:
        raise CurateError(f"--schedule {schedule}: choose one of {', '.join(SCHEDULES)}")
    if seeds < 2 or (epochs is not None and epochs < 1):
        raise CurateError("--seeds must be at least 2, which an interval needs, and --epochs at least 1")


def _default_name(model: str, schedule: str, within: str | None, transfer: list[str] | str | None) -> str:
    parts = (model.replace(":", "-").replace("/", "-"), schedule if schedule != "epochs" else None,
             f"in-{within}" if within else None, "transfer" if transfer else None)  # fmt: skip
    return "-".join(filter(None, parts))


def _done(catalog: Catalog, name: str) -> set[tuple[str, str | None, int]]:
    """The trainings that are in the catalog: (arm, selection, seed)."""
    with catalog.reading() as connection:
        return set(connection.execute("select arm, selection, seed from trainings where validation = ?", [name]).fetchall())


def _compare(
    catalog: Catalog, head: dict[str, Any], plan: Plan, selections: list[dict[str, Any]], resources: Resources, device: str
) -> None:
    """Train what is missing, and put each arm into the catalog when it ends."""
    from curate.engine.fitting import Inputs
    from curate.engine.validating import TrainArm
    from curate.stages.arms import arms
    from curate.stages.tasks import split

    made, classes = models.make(plan.model), corpus.classes(catalog)
    with catalog.workspace() as folder:
        reduction = material.prepare(catalog, head["embedding"], folder / "corpus", [made], classes, within=plan.within)
        train, test, transfer, labels = split(catalog, head["embedding"], folder, made, reduction, plan)
        epochs = plan.epochs or models.epochs(made, int(train.sum()))
        seeds = [plan.seed + place for place in range(plan.seeds)]
        inputs = Inputs(folder / "corpus")
        every = arms(catalog, plan.schedule, seeds, made, selections, inputs.array("ids"), train, epochs, folder)
        head |= {"epochs": epochs, "num_test": len(np.load(test.places, mmap_mode="r")), "num_samples": int(train.sum()),
                 "num_trainings": sum(len(arm.seeds) * len(arm.selections) for arm in every)}  # fmt: skip
        _claim(catalog, head)
        done = _done(catalog, head["validation"])
        todo = [arm for arm in every if not {(arm.arm, selection, arm.seeds[0]) for selection in arm.selections} <= done]
        task = TrainArm(plan.model, inputs, len(classes), test, transfer, device)
        after = transfer.presented(made) if transfer else 0
        total = sum(arm.epochs * np.load(arm.subsets, mmap_mode="r").size + after * len(arm.seeds) for arm in todo)
        with bar("train", int(total)) as advance:
            for outcome in engine.map(task, todo, resources, advance=advance):
                if outcome.error:
                    raise CurateError(f"cannot train the arm {outcome.item.arm}: {outcome.error}")
                _commit(catalog, head["validation"], outcome.result, labels)


def _claim(catalog: Catalog, head: dict[str, Any]) -> None:
    """The head row; what an older validation of that name left goes, unless it is the same one, half done."""
    name = head["validation"]
    with catalog.writing() as connection:
        old = sets.head(connection, "validation", name)
        if old and old["fingerprint"] == head["fingerprint"]:
            connection.execute("update validations set run_id = ? where validation = ?", [head["run_id"], name])
            return
        sets.replace(connection, "validation", "trainings", head)
        connection.execute("delete from class_accuracies where validation = ?", [name])


def _commit(catalog: Catalog, name: str, rows: list[dict[str, Any]], classes: list[str]) -> None:
    with catalog.writing() as connection:
        for row in rows:
            totals, rights = row.pop("totals"), row.pop("rights")
            key = {"validation": name, "arm": row["arm"], "selection": row["selection"], "seed": row["seed"]}
            for table in ("trainings", "class_accuracies"):  # an arm of two selections, one of which was there already
                connection.execute(
                    f"delete from {table} where validation = $validation and arm = $arm and seed = $seed "
                    "and selection is not distinct from $selection", key,
                )  # fmt: skip
            sets.insert(connection, "trainings", {"validation": name, **row})
            for label, total, right in zip(classes, totals.tolist(), rights.tolist(), strict=True):
                if total:
                    found = {"label": label, "num_test": total, "accuracy": right / total}
                    sets.insert(connection, "class_accuracies", key | found)


def verdicts(catalog: Catalog | str | Path, name: str) -> list[Verdict]:
    """What the comparisons say, a line a selection, with 95% intervals."""
    with Catalog(catalog).reading() as connection:
        rows = connection.execute(
            "select selection, pruned, over_full, over_full_interval, over_random, over_random_interval, "
            "coalesce(selections.run_id > validations.run_id, false) "
            "from pruned_vs_random left join validations using (validation) left join selections using (selection) "
            "where validation = ? and over_full_interval is not null order by pruned_vs_random.keep desc, selection", [name],
        ).fetchall()  # fmt: skip
    return [_verdict(*row) for row in rows]


def _verdict(
    selection: str, accuracy: float, loss: float, loss_interval: float, gain: float, gain_interval: float,
    replaced: bool = False,
) -> Verdict:  # fmt: skip
    to_full = "loses" if loss + loss_interval < 0 else "gains" if loss - loss_interval > 0 else "no loss found"
    to_random = "no difference from random found"
    if abs(gain) > gain_interval:
        to_random = "beats random" if gain > 0 else "worse than random"
    text = (f"{selection}: {accuracy:.1f}% right; against everything: {to_full}, {loss:+.2f} ± {loss_interval:.2f} points; "
            f"{to_random}, {gain:+.2f} ± {gain_interval:.2f}")  # fmt: skip
    if replaced:
        text += ". The selection was made anew since: validate it again"
    alarming = gain + gain_interval < -ALARMING
    return Verdict(f"{text}. Do not train on this one: random samples do much better" if alarming else text, alarming)
