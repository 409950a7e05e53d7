"""The commands that make sets: embed, cluster, probe, score, select, export. Each parses, calls one stage, prints a name."""

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.options import (
    CATALOG,
    CatalogOption,
    Embedding,
    EngineOption,
    Name,
    RayAddress,
    Seed,
    Strict,
    Within,
    Workers,
    app,
    exit_partly,
    number_of_clusters,
    pair,
    working_on,
)  # fmt: skip


@app.command(epilog="Example: curate embed 'corpus/{00000..00099}.tar' --encoder open_clip:ViT-B-32/openai")
def embed(
    shards: Annotated[
        list[str], typer.Argument(help="Paths, folders, globs, brace ranges, or URLs (s3://, gs://, https://, hf://).")
    ],
    encoder: Annotated[
        str | None, typer.Option(help="NAME, NAME:VARIANT or NAME:VARIANT@SIZE; see `curate list encoders`.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights from a file.", show_default=False)] = None,
    label: Annotated[str, typer.Option(help="Where labels are: cls, or json:FIELD.")] = "cls",
    batch_size: Annotated[int | None, typer.Option(help="Images a batch.", min=1, show_default=False)] = None,
    workers: Workers = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    decode: Annotated[
        str | None, typer.Option(help="Images: fast, or exact as the model's own transform.", show_default="fast")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time went.")] = False,
    files: Annotated[
        str | None, typer.Option(help="Where a new catalog puts vectors and centroids.", metavar="URL", show_default=False)
    ] = None,
    strict: Strict = False,
    name: Name = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Stream shards through an encoder: vectors to Parquet, samples to the catalog."""
    from curate.stages import embed as stage

    with working_on(engine, ray_address, workers):
        made = stage.embed(
            catalog, shards, encoder=encoder or stage.DEFAULT_ENCODER, checkpoint=str(checkpoint) if checkpoint else None,
            label=label, batch_size=batch_size, workers=workers, device=device, decode=decode, profile=profile, files=files,
            name=name,
        )  # fmt: skip
    print(made)
    exit_partly(catalog, made, strict=strict)


@app.command(epilog="Example: curate cluster --k 1000 --distance cosine")
def cluster(
    k: Annotated[str, typer.Option(help="Number of clusters; auto = samples / 1000, from 10 to 50,000.")] = "auto",
    distance: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    iterations: Annotated[int, typer.Option(help="Iterations of k-means on the sample.", min=1)] = 12,
    sample: Annotated[
        int | None, typer.Option(help="Rows to fit on (default: 64 a cluster, at least 65,536).", min=1, show_default=False)
    ] = None,
    passes: Annotated[int, typer.Option(help="Iterations over every row, after those on the sample.", min=0)] = 2,
    memory: Annotated[
        float | None, typer.Option(help="GiB that the fit may take (default: 3/4 of the memory).", min=0.01, show_default=False)
    ] = None,
    embedding: Embedding = None,
    seed: Seed = 0,
    workers: Workers = None,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "kmeans",
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """k-means in an embedding: centroids, and a cluster and a distance for every sample."""
    from curate.stages.cluster import cluster as stage

    number = number_of_clusters(k)
    with working_on(engine, ray_address, workers):
        print(stage(
            catalog, embedding=embedding, k=number, distance=distance, iterations=iterations,
            sample=sample, passes=passes, memory=memory, seed=seed, workers=workers or 1, name=name,
        ))  # fmt: skip


@app.command(
    epilog="Examples: curate probe · curate probe --model ridge --fraction 0.7 · curate probe --model ridge --test 'test/*.tar'"
)
def probe(
    model: Annotated[
        list[str] | None, typer.Option(help="A kind of model, repeatable; see `curate list models`.", show_default="mlp")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Models of each kind (default: 10, 1 each of several, or 2,000 ridge and 200 other subset models).",
            min=1,
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes (default: by model and size of the corpus).", min=1, show_default=False)
    ] = None,
    fraction: Annotated[float, typer.Option(help="Train each model on a random subset; 0.7 for memorization.")] = 1.0,
    within: Within = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Test shards, for influence; repeatable.", metavar="SHARDS", show_default=False)
    ] = None,
    embedding: Embedding = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    name: Name = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Train small models on the corpus, whose mistakes tell how hard each sample is."""
    from curate.stages.probe import probe as stage

    with working_on(engine, ray_address):
        print(stage(
            catalog, model=model or "mlp", count=count, epochs=epochs, fraction=fraction, within=within, test=test,
            embedding=embedding, seed=seed, device=device, name=name,
        ))  # fmt: skip


@app.command(epilog="Examples: curate score ssl_prototypes el2n · curate score --from mine.py:my_metric")
def score(
    metrics: Annotated[list[str] | None, typer.Argument(help="Names from `curate list metrics`.", show_default=False)] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--from", help="A function of your own, as FILE.py:NAME.", metavar="FILE", show_default=False),
    ] = None,
    embedding: Embedding = None,
    clustering: Annotated[
        str | None, typer.Option(help="Which clustering (default: the only one).", show_default=False)
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="Which probe (default: the only one that will do).", show_default=False)
    ] = None,
    distance: Annotated[
        str | None, typer.Option(help="cosine or euclidean (default: the clustering's, else cosine).", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE, an option of the metric itself.", show_default=False),
    ] = None,
    seed: Seed = 0,
    workers: Workers = None,
    name: Name = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Score every sample. A high score always means worth keeping."""
    from curate.stages.score import score as stage

    chosen = [*(metrics or []), *(own or [])]
    if not chosen or not all(":" in file for file in own or []):
        raise typer.BadParameter("name metrics (`curate list metrics`), or --from FILE.py:NAME", param_hint="METRICS")
    options = dict(pair(text, "--option") for text in option or [])
    with working_on(engine, ray_address, workers):
        names = stage(
            catalog, chosen, embedding=embedding, clustering=clustering, probe=probe, distance=distance, options=options,
            seed=seed, workers=workers or 1, name=name,
        )  # fmt: skip
    print("\n".join(names))


@app.command(epilog="Example: curate select --keep 0.8 --where 'width >= 200'")
def select(
    keep: Annotated[
        str, typer.Option(help="Fraction to keep, above 0 and up to 1; auto goes by `curate validate`.", metavar="F")
    ],
    scoring: Annotated[str, typer.Option(help="Scoring to go by.")] = "ssl_prototypes",
    strategy: Annotated[str, typer.Option(help="Which to keep first; see `curate list strategies`.")] = "hardest",
    balance: Annotated[float, typer.Option(help="Class balance: 0 off, 1 every class pruned equally.")] = 0.5,
    balance_by: Annotated[
        str | None, typer.Option(help="label, cluster or none (default: label, or cluster without labels).", show_default=False)
    ] = None,
    balance_base: Annotated[str, typer.Option(help="Floors: proportional to the class, or uniform.")] = "proportional",
    scope: Annotated[str, typer.Option(help="global, or within each class or cluster.")] = "global",
    where: Annotated[
        str | None, typer.Option(help="SQL over the view sample_scores.", metavar="SQL", show_default=False)
    ] = None,
    within: Within = None,
    skip_hardest: Annotated[
        float, typer.Option(help="Leave out this share of each class, its hardest: labels may be wrong there.")
    ] = 0.0,
    tolerance: Annotated[float, typer.Option(help="Points of accuracy that --keep auto may lose.")] = 0.5,
    seed: Seed = 0,
    name: Name = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Keep a fraction of the corpus; exactly round(keep · n) samples."""
    from curate.stages.select import select as stage

    try:
        fraction: float | str = keep if keep == "auto" else float(keep)
    except ValueError:
        raise typer.BadParameter(f"'{keep}' is no number and not auto", param_hint="--keep") from None
    print(stage(
        catalog, keep=fraction, scoring=scoring, strategy=strategy, balance=balance, balance_by=balance_by,
        balance_base=balance_base, scope=scope, where=where, within=within, skip_hardest=skip_hardest, tolerance=tolerance,
        seed=seed, name=name,
    ))  # fmt: skip


@app.command(epilog="Example: curate validate --keep 0.8 --keep 0.5 --strategy hardest --strategy easiest --scoring el2n")
def validate(
    selections: Annotated[
        list[str] | None, typer.Argument(help="Names of selections (default: those of --keep, or all).", show_default=False)
    ] = None,
    keep: Annotated[
        list[float] | None, typer.Option(help="Fraction to keep; repeatable: a grid with --strategy.", show_default=False)
    ] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Repeatable.", show_default="hardest")] = None,
    scoring: Annotated[str | None, typer.Option(help="Scoring to go by, for --keep.", show_default="ssl_prototypes")] = None,
    balance: Annotated[float, typer.Option(help="Class balance, for --keep.")] = 0.5,
    model: Annotated[str, typer.Option(help="What to train; see `curate list models`.")] = "mlp",
    seeds: Annotated[int, typer.Option(help="Trainings an arm.", min=2)] = 5,
    epochs: Annotated[
        int | None, typer.Option(help="Passes (default: by model and size of the corpus).", min=1, show_default=False)
    ] = None,
    schedule: Annotated[str, typer.Option(help="Every arm as many epochs, or as many iterations as the full one.")] = "epochs",
    within: Within = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            help="Test shards (default: a fifth of the corpus, by key); repeatable.", metavar="SHARDS", show_default=False
        ),
    ] = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(
            help="Shards of another task to fine-tune on and test for; repeatable.", metavar="SHARDS", show_default=False
        ),
    ] = None,
    embedding: Embedding = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    name: Name = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Train on selections, on random samples and on everything: how far can the corpus be pruned without loss?"""
    from curate.stages.validate import validate as stage

    print(stage(
        catalog, selections, keep=keep, strategy=strategy, scoring=scoring, balance=balance, model=model,
        seeds=seeds, epochs=epochs, schedule=schedule, within=within, test=test, transfer=transfer,
        embedding=embedding, seed=seed, device=device, name=name,
    ))  # fmt: skip


@app.command(epilog="Example: curate export $(curate select --keep 0.8) pruned/")
def export(
    selection: Annotated[str, typer.Argument(help="A selection's name.")],
    out: Annotated[str, typer.Argument(help="New or empty folder, or a URL.")],
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Repack into even shards of at most so many.", min=1, show_default=False)
    ] = None,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="No images, only index.parquet (url, key, sample_id).")
    ] = False,
    workers: Workers = None,
    name: Name = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Write the selected samples as tar shards, byte for byte as they came, with a manifest."""
    from curate.stages.export import export as stage

    with working_on(engine, ray_address, workers):
        print(stage(
            catalog, selection, out, samples_per_shard=samples_per_shard, index_only=index_only, workers=workers or 1,
            name=name,
        ))  # fmt: skip
