"""`curate probe`: train small models on the corpus, and keep what they say of every sample, for metrics to read."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from curate import corpus, engine, models, probes, provenance, sets
from curate.atomic import sweep
from curate.catalog import Catalog
from curate.engine import Resources
from curate.errors import CurateError
from curate.progress import bar, log
from curate.stages import material

_SEEDS = 1_000_000  # models a seed, so that two seeds share no model


def probe(
    catalog: Catalog | str | Path,
    *,
    model: list[str] | str = "mlp",
    count: int | None = None,
    epochs: int | None = None,
    fraction: float = 1.0,
    within: str | None = None,
    test: list[str] | str | None = None,
    embedding: str | None = None,
    seed: int = 0,
    device: str = "auto",
    name: str | None = None,
) -> str:
    """Train `count` models of each kind, each on a random `fraction` of the labelled samples; return the probe's name.

    Models are heads on an embedding (linear, mlp, ridge) or read the images (conv, resnet18, timm:NAME). `count`
    is 10 for one kind, 1 for each of several, and for subsets 2,000 ridge models or 200 others. `epochs` depends on
    the model and on the size of the corpus. Influence is measured on the samples of the shards `test`, which are
    embedded into a catalog inside this one. `within` names a selection that is all the corpus for this probe: other
    samples get no score from it. Parts that are finished when a run is killed are kept.
    """
    specs = [model] if isinstance(model, str) else list(model)
    check(model=specs, count=count, epochs=epochs, fraction=fraction)
    device, gpus = engine.current().devices(device)
    catalog = Catalog(catalog)
    parent = catalog.require("embedding", embedding)
    embedding = str(parent["embedding"])
    name = sets.check_name(name or default_name(specs, fraction, within))
    held_out = material.embed_beside(catalog, parent, [test] if isinstance(test, str) else test) if test else None
    if held_out:
        material.check_apart((catalog, None), held_out)
    passes = epochs or _epochs(catalog, embedding, specs, fraction, within)
    urls = held_out[1] if held_out else []
    plan = Plan(specs, _counts(specs, count, fraction), passes, fraction, seed, urls, within)
    settings = {"embedding": embedding, **plan._asdict()}
    content = [catalog.embedding_fingerprint(embedding)]
    content += [held_out[0].embedding_fingerprint(embedding)] if held_out else []
    content += [catalog.require("selection", within)["fingerprint"]] if within else []
    code = [provenance.source(models.models[spec.partition(":")[0]]) for spec in specs]
    fingerprint = provenance.fingerprint("probe", settings, *content, *code)
    made = catalog.made("probe", name, fingerprint)
    if made and _is_whole(catalog, made):
        with catalog.only_writer(catalog.probe_folder(made).parent, f"the probe '{name}'"):
            _remove_others(catalog.probe_folder(made))
        log.info("nothing to do: '%s' is this probe already (%s models)", name, f"{made['num_models']:,}")
        return name
    old = catalog.head("probe", name)
    head = {"probe": name, "embedding": embedding, "models": specs, "num_models": sum(plan.counts), "epochs": plan.epochs,
            "fraction": fraction, "seed": seed, "test": plan.test, "folder": f"{name}/{fingerprint[:12]}",
            "fingerprint": fingerprint}  # fmt: skip
    with (
        catalog.only_writer(catalog.probe_folder(head).parent, f"the probe '{name}'"),
        catalog.run("probe", name, settings, made_from=parent["run_id"], fingerprint=fingerprint, device=device) as run_id,
    ):
        sweep(catalog.probe_folder(head).parent)
        counts, rows = _train(catalog, head, plan, held_out[0] if held_out else None, device, gpus)
        _commit(catalog, {**head, **counts, "run_id": run_id}, rows)
    _summarize(catalog, name, replaced=old is not None)
    return name


def _is_whole(catalog: Catalog, head: dict[str, Any]) -> bool:
    """Whether every model of a probe has its files; a part whose folder was removed is trained again."""
    try:
        return [probes.summary(part) for part in catalog.probe_parts(head)] != []
    except CurateError:
        return False


class Plan(NamedTuple):
    """What to train: so many models of each kind, so long, on so much; and the urls of the test shards."""

    specs: list[str]
    counts: list[int]
    epochs: int
    fraction: float
    seed: int
    test: list[str]
    within: str | None


def check(
    *, model: list[str] | str = "mlp", count: int | None = None, epochs: int | None = None, fraction: float = 1.0, **others: Any
) -> None:
    """CurateError for a model that there is none of, and for numbers that cannot be."""
    specs = [model] if isinstance(model, str) else model
    for spec in specs:
        models.make(spec)
    if not specs or len(set(specs)) != len(specs):
        raise CurateError("--model: name each kind of model once; --count trains more of a kind")
    if not 0 < fraction <= 1:
        raise CurateError(f"--fraction {fraction:g}: give a number above 0 and up to 1, such as 0.7")
    if (count is not None and not 1 <= count <= _SEEDS) or (epochs is not None and epochs < 1):
        raise CurateError(f"--count must be from 1 to {_SEEDS:,}, --epochs at least 1")


def default_name(specs: list[str], fraction: float, within: str | None = None) -> str:
    """The model's name, or diverse for several; the fraction, if it is not all; and the selection."""
    base = "diverse" if len(specs) > 1 else specs[0].replace(":", "-").replace("/", "-")
    return "-".join(filter(None, (base, f"{fraction:g}" if fraction < 1 else None, f"in-{within}" if within else None)))


def _counts(specs: list[str], count: int | None, fraction: float) -> list[int]:
    """Models of each kind. One solved in closed form on all samples has no randomness, so there is one."""
    counts = []
    for spec in specs:
        closed = models.make(spec).build is None
        if fraction == 1 and closed:
            counts.append(1)
        elif fraction < 1:
            counts.append(count or (2000 if closed else 200))
        else:
            counts.append(count or (10 if len(specs) == 1 else 1))
    return counts


def _epochs(catalog: Catalog, embedding: str, specs: list[str], fraction: float, within: str | None) -> int:
    """The most epochs that any of the models needs on a corpus of this size."""
    with catalog.reading() as connection:
        ((rows,),) = connection.execute(
            "select count(label) from samples where shard_id in (select shard_id from embedded_shards where embedding = $1) "
            "and ($2 is null or sample_id in (select sample_id from members where selection = $2))",
            [embedding, within],
        ).fetchall()
    return max(models.epochs(models.make(spec, fraction), max(round(fraction * rows), 1)) for spec in specs)


def _parts(plan: Plan) -> list[Any]:
    """Models of one kind, as many as are trained as one tensor program."""
    from curate.engine.probing import Part

    parts = []
    for spec, count in zip(plan.specs, plan.counts, strict=True):
        made = models.make(spec)
        seeds = [plan.seed * _SEEDS + place for place in range(count)]
        for start in range(0, count, made.stack):
            name = f"{spec.replace(':', '-').replace('/', '-')}-{start:06d}"
            parts.append(Part(name, spec, seeds[start : start + made.stack]))
    return parts


def _train(
    catalog: Catalog, head: dict[str, Any], plan: Plan, held_out: Catalog | None, device: str, gpus: tuple[int, ...]
) -> tuple[dict[str, int], list[dict[str, Any]]]:  # fmt: skip
    """Train the parts that are missing; return the numbers for the head row, and a row for each model."""
    from curate.engine.fitting import Inputs
    from curate.engine.probing import TrainPart

    made = [models.make(spec) for spec in plan.specs]
    classes = corpus.classes(catalog)
    with catalog.workspace() as folder:
        reduction = material.prepare(catalog, head["embedding"], folder / "corpus", made, classes, within=plan.within)
        if held_out:
            material.prepare(held_out, head["embedding"], folder / "test", made, classes, reduction, plan.test)
        inputs = Inputs(folder / "corpus")
        test = Inputs(folder / "test") if held_out else None
        labelled = int((inputs.array("labels") >= 0).sum())
        if labelled < 2 or round(plan.fraction * labelled) < 1:
            raise CurateError(f"the embedding '{head['embedding']}' has {labelled} labelled samples: too few to train on")
        task = TrainPart(inputs, test, len(classes), plan.fraction, plan.epochs, device, catalog.probe_folder(head))
        work = sum(len(part.seeds) * (plan.epochs if models.make(part.spec).build else 1) for part in _parts(plan))
        cores, of_machine = engine.current().cores(device)
        # A part a GPU; on CPUs a part a machine, whose program uses all its cores.
        resources = Resources(len(gpus), max(cores // len(gpus), 1), gpus) if gpus else Resources(1, of_machine)
        rows = []
        with bar("train", work * round(plan.fraction * labelled)) as advance:
            for outcome in engine.map(task, _parts(plan), resources, advance=advance):
                if outcome.error:
                    raise CurateError(f"cannot train {outcome.item.spec}: {outcome.error}")
                rows += outcome.result
        num_test = int((test.array("labels") >= 0).sum()) if test else 0
        return {"num_classes": len(classes), "num_samples": labelled, "num_test": num_test}, rows


def _commit(catalog: Catalog, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The probe's head and its models into the catalog; what an older probe of that name left goes."""
    with catalog.writing() as connection:
        sets.replace(connection, "probe", "probe_models", head)
        for row in rows:
            sets.insert(connection, "probe_models", {"probe": head["probe"], **row})
    _remove_others(catalog.probe_folder(head))


def _remove_others(folder: Path) -> None:
    """Parts of probes that were replaced, and of models that were not finished."""
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other, ignore_errors=True)
    sweep(folder)


def _summarize(catalog: Catalog, name: str, *, replaced: bool) -> None:
    with catalog.reading() as connection:
        rows = connection.execute(
            "select model, count(*), avg(accuracy), avg(left_out_accuracy), avg(test_accuracy) from probe_models "
            "where probe = ? group by model order by min(rowid)", [name],
        ).fetchall()  # fmt: skip
        head = sets.head(connection, "probe", name) or {}
    log.info("probe '%s'%s: %s samples, %d epochs", name, " replaced" if replaced else "", f"{head['num_samples']:,}",
             head["epochs"])  # fmt: skip
    for model, count, *accuracies in rows:
        told = [f"{accuracy:.1%} of {where}" for accuracy, where in
                zip(accuracies, ("what it learned", "what was left out", "the test samples"), strict=True)
                if accuracy is not None]  # fmt: skip
        log.info("  %s × %s: right on %s", f"{count:,}", model, ", ".join(told))
