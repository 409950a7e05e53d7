"""The commands that show what there is, and those that run whole chains: query, gallery, list, run, demo."""

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.options import (
    CATALOG,
    FAILED,
    CatalogOption,
    EngineOption,
    RayAddress,
    Strict,
    Workers,
    app,
    exit_partly,
    number_of_clusters,
    pair,
    working_on,
)  # fmt: skip


@app.command(epilog="Examples: curate query class_balance · curate query 'select count(*) from samples' --format csv")
def query(
    sql: Annotated[str, typer.Argument(help="SQL, or a name from `curate list queries`.", metavar="SQL|NAME")],
    format: Annotated[
        str | None, typer.Option("--format", "-f", help="table, csv, json or parquet (default: the file's ending, or table).")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE for a saved query.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write (parquet needs one).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="Rows shown as a table; files and the other formats have all.", min=1)] = 200,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the SQL read other files too, by read_parquet('FILE') and the like.")
    ] = False,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Ask the catalog, read-only; also while another command runs."""
    from curate import answers
    from curate.stages.query import asking

    params = dict(pair(text) for text in param or [])
    with asking(catalog, sql, params, allow_files=allow_files) as (connection, text):
        answers.write(connection, text, format, out, limit)


@app.command(epilog="Example: curate gallery --scoring supervised_prototypes --count 8")
def gallery(
    scoring: Annotated[str, typer.Option(help="Scoring to go by.")] = "ssl_prototypes",
    by: Annotated[
        str | None, typer.Option(help="label or cluster (default: label, or cluster without labels).", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="Images a side and row.", min=1, max=100)] = 6,
    size: Annotated[int, typer.Option(help="Edge of an image in pixels.", min=8, max=512)] = 64,
    max_rows: Annotated[int, typer.Option(help="Classes shown, the largest.", min=1)] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write (default: in the catalog).", show_default=False)
    ] = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Draw the easiest and the hardest images of each class."""
    from curate.stages.gallery import gallery as stage

    print(stage(catalog, scoring=scoring, by=by, count=count, size=size, max_rows=max_rows, out=out))


@app.command(epilog="Example: curate report report.html --scoring el2n")
def report(
    out: Annotated[
        Path | None, typer.Argument(help="HTML to write (default: report.html in the catalog).", show_default=False)
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(help="Orders the images (default: ssl_prototypes, or the newest).", show_default=False),
    ] = None,
    thumbnails: Annotated[int, typer.Option(help="Images shown at most.", min=0)] = 600,
    size: Annotated[int, typer.Option(help="Edge of an image in pixels.", min=16, max=512)] = 72,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Write one HTML page, readable offline: corpus, images, scores, selections, validations, lineage."""
    from curate.stages.report import report as stage

    print(stage(catalog, out, scoring=scoring, thumbnails=thumbnails, size=size))


@app.command(epilog="Example: curate fit --model mlp")
def fit(
    model: Annotated[str, typer.Option(help="Validations by this model.")] = "mlp",
    schedule: Annotated[str, typer.Option(help="And by this schedule.")] = "epochs",
    form: Annotated[str, typer.Option(help="power (with an asymptote) or exponential.")] = "power",
    catalog: CatalogOption = CATALOG,
) -> None:
    """How the error falls with the number of samples, at random and with the best pruning."""
    from curate.stages.fit import fit as stage

    print("\n".join(stage(catalog, model=model, schedule=schedule, form=form)))


@app.command(epilog="Examples: curate theory --alpha-tot 8 --keep 0.3 · curate theory --figure 1a")
def theory(
    alpha_tot: Annotated[float | None, typer.Option(help="Examples per dimension before pruning.", show_default=False)] = None,
    keep: Annotated[float, typer.Option(help="Fraction to keep, above 0 and up to 1.")] = 1.0,
    theta: Annotated[float, typer.Option(help="Angle between teacher and probe in degrees, from 0 to below 90.")] = 0.0,
    strategy: Annotated[str, typer.Option(help="hardest, easiest or random.")] = "hardest",
    margin: Annotated[str, typer.Option(help="Rank by the absolute or the signed margin.")] = "absolute",
    figure: Annotated[
        str | None, typer.Option(help="Draw a figure of the paper: 1a, 1b, 1c, 1e, 1f, 2b, 2c, 2d.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for figures.")] = Path("figures"),
) -> None:
    """What the perceptron theory of data pruning predicts."""
    from curate import answers
    from curate.stages.theory import theory as stage

    found = stage(alpha_tot=alpha_tot, keep=keep, theta=theta, strategy=strategy, margin=margin, figure=figure, out=out)
    if isinstance(found, str):
        print(found)
    else:
        answers.write_rows([found], format)


@app.command(epilog="Example: curate run clothing --set select.keep=0.5")
def run(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a name from `curate list recipes`.", metavar="RECIPE")],
    set: Annotated[list[str] | None, typer.Option("--set", help="stage.key=value", show_default=False)] = None,
    from_stage: Annotated[str | None, typer.Option("--from", help="Begin with this stage.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and show its steps.")] = False,
    strict: Strict = False,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: Annotated[
        Path | None,
        typer.Option("--catalog", "-c", envvar="CURATE_CATALOG", help="Folder of the catalog.", show_default="the recipe's"),
    ] = None,
) -> None:
    """Run a whole chain from a recipe; one that stopped goes on where it stopped."""
    from curate import recipe as recipes

    with working_on(engine, ray_address):
        print(recipes.run(recipe, catalog, set=set, from_stage=from_stage, dry_run=dry_run))
    if not dry_run:
        exit_partly(recipes.load(recipe, set or [], catalog)[0], strict=strict)


@app.command(epilog="Examples: curate plan 'corpus/*.tar' --encoder efficientnet_lite0 · curate plan --samples 1000000000")
def plan(
    shards: Annotated[
        list[str] | None, typer.Argument(help="What is to be embedded (default: what the catalog has).", show_default=False)
    ] = None,
    samples: Annotated[int | None, typer.Option(help="As many samples of the same kind.", min=1, show_default=False)] = None,
    encoder: Annotated[str | None, typer.Option(help="For shards; see `curate list encoders`.", show_default=False)] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights from a file.", show_default=False)] = None,
    k: Annotated[str, typer.Option(help="Number of clusters, or auto.")] = "auto",
    keep: Annotated[float, typer.Option(help="Fraction to keep, above 0 and up to 1.")] = 0.8,
    format: Annotated[str, typer.Option("--format", "-f", help="table or json (seconds and bytes).")] = "table",
    workers: Workers = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """What will it take? Time, memory and disk of each stage, from some seconds of measurement."""
    from curate import answers
    from curate.stages.embed import DEFAULT_ENCODER
    from curate.stages.plan import plan as stage
    from curate.units import duration, size

    number = number_of_clusters(k)
    with working_on(engine, ray_address, workers):
        rows = stage(
            catalog, shards, samples=samples, encoder=encoder or DEFAULT_ENCODER, keep=keep, workers=workers,
            checkpoint=str(checkpoint) if checkpoint else None, k=number,
        )  # fmt: skip
    if format == "table":
        rows = [
            {"stage": row["stage"], "samples": f"{row['samples']:,}", "time": duration(row["seconds"]),
             "memory": size(row["memory"]), "disk": size(row["disk"])} for row in rows
        ]  # fmt: skip
    answers.write_rows(rows, format)


@app.command(epilog="Examples: curate verify · curate verify pruned --sources")
def verify(
    exports: Annotated[
        list[str] | None,
        typer.Argument(help="Exported folders (default: the catalog, and the exports it knows).", show_default=False),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Read the shards too, and compare exports with them byte by byte.")
    ] = False,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Check that nothing is lost, doubled or damaged; one line a fault, and exit status 1 if there is any."""
    from curate.stages.verify import verify as stage

    faults = stage(catalog, list(exports or []), sources=sources)
    for fault in faults:
        print(fault)
    if faults:
        raise typer.Exit(FAILED)


@app.command("list", epilog="Example: curate list queries")
def list_(
    what: Annotated[
        str, typer.Argument(help="encoders, metrics, models, strategies, recipes, queries; sets, runs, selections …")
    ] = "sets",
    catalog: CatalogOption = CATALOG,
) -> None:
    """What there is to choose from."""
    from curate import answers

    answers.print_list(what, catalog)


@app.command(epilog="Example: curate demo my-demo")
def demo(folder: Annotated[Path, typer.Argument(help="Folder to work in.")] = Path("curate-demo")) -> None:
    """Prune 5,000 real digits, from shards to shards, in about a minute."""
    from curate import answers
    from curate.demo import demo as stage

    answers.print_demo(folder, stage(folder))
