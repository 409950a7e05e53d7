"""The command line: parse, call one stage, print the name or path that it made."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from curate.errors import CurateError

FAILED, PARTLY, INTERRUPTED = 1, 3, 130

app = typer.Typer(
    name="curate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 1 failed (one line says why); 2 wrong usage; 3 done, but some samples or shards failed.",
)

CatalogOption = Annotated[
    Path, typer.Option("--catalog", "-c", envvar="CURATE_CATALOG", help="Folder of the catalog.", metavar="DIR")
]
CATALOG = Path("curated")
Name = Annotated[str | None, typer.Option("--name", help="Name of the result.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]
Workers = Annotated[int | None, typer.Option("--workers", "-j", help="Worker processes.", min=1, show_default=False)]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 instead of 3 if any sample or shard failed.")]
Embedding = Annotated[str | None, typer.Option(help="Which embedding (default: the only one).", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        from curate import provenance

        print(provenance.version())
        raise typer.Exit


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages and no progress bars on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Turn a corpus of images in WebDataset shards into the smallest part of it that trains as good a model.

    [bold]embed[/] SHARDS → [bold]cluster[/] → [bold]score[/] → [bold]select[/] → [bold]export[/]. Begin with [bold]demo[/].
    """
    from curate import progress

    progress.show(messages=not quiet, bars=not quiet)


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
    strict: Strict = False,
    name: Name = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Stream shards through an encoder: vectors to Parquet, samples to the catalog."""
    from curate.stages import embed as stage

    made = stage.embed(
        catalog, shards, encoder=encoder or stage.DEFAULT_ENCODER, checkpoint=str(checkpoint) if checkpoint else None,
        label=label, batch_size=batch_size, workers=workers, device=device, name=name,
    )  # fmt: skip
    print(made)
    _exit_partly(catalog, made, strict=strict)


@app.command(epilog="Example: curate cluster --k 1000 --distance cosine")
def cluster(
    k: Annotated[str, typer.Option(help="Number of clusters; auto = samples / 1000, from 10 to 50,000.")] = "auto",
    distance: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    iterations: Annotated[int, typer.Option(help="Iterations of k-means.", min=1)] = 20,
    sample: Annotated[
        int | None, typer.Option(help="Rows to fit on (default: 256 a cluster).", min=1, show_default=False)
    ] = None,
    embedding: Embedding = None,
    seed: Seed = 0,
    workers: Workers = None,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "kmeans",
    catalog: CatalogOption = CATALOG,
) -> None:
    """k-means in an embedding: centroids, and a cluster and a distance for every sample."""
    from curate.stages.cluster import cluster as stage

    if k != "auto" and not k.isdecimal():
        raise typer.BadParameter("give a whole number, or auto", param_hint="--k")
    number = "auto" if k == "auto" else int(k)
    print(stage(
        catalog, embedding=embedding, k=number, distance=distance, iterations=iterations,
        sample=sample, seed=seed, workers=workers or 1, name=name,
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
    test: Annotated[
        list[str] | None, typer.Option(help="Test shards, for influence; repeatable.", metavar="SHARDS", show_default=False)
    ] = None,
    embedding: Embedding = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    name: Name = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Train small models on the corpus, whose mistakes tell how hard each sample is."""
    from curate.stages.probe import probe as stage

    print(stage(
        catalog, model=model or "mlp", count=count, epochs=epochs, fraction=fraction, test=test, embedding=embedding, seed=seed,
        device=device, name=name,
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
    catalog: CatalogOption = CATALOG,
) -> None:
    """Score every sample. A high score always means worth keeping."""
    from curate.stages.score import score as stage

    chosen = [*(metrics or []), *(own or [])]
    if not chosen or not all(":" in file for file in own or []):
        raise typer.BadParameter("name metrics (`curate list metrics`), or --from FILE.py:NAME", param_hint="METRICS")
    options = dict(_pair(text, "--option") for text in option or [])
    names = stage(
        catalog, chosen, embedding=embedding, clustering=clustering, probe=probe, distance=distance, options=options, seed=seed,
        workers=workers or 1, name=name,
    )  # fmt: skip
    print("\n".join(names))


@app.command(epilog="Example: curate select --keep 0.8 --where 'width >= 200'")
def select(
    keep: Annotated[float, typer.Option(help="Fraction to keep, above 0 and up to 1.")],
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
    seed: Seed = 0,
    name: Name = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Keep a fraction of the corpus; exactly round(keep · n) samples."""
    from curate.stages.select import select as stage

    print(stage(
        catalog, keep=keep, scoring=scoring, strategy=strategy, balance=balance, balance_by=balance_by,
        balance_base=balance_base, scope=scope, where=where, seed=seed, name=name,
    ))  # fmt: skip


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
    catalog: CatalogOption = CATALOG,
) -> None:
    """Ask the catalog, read-only; also while another command runs."""
    from curate import answers
    from curate.stages.query import asking

    params = dict(_pair(text) for text in param or [])
    with asking(catalog, sql, params) as (connection, text):
        answers.write(connection, text, format, out, limit)


@app.command(epilog="Example: curate export $(curate select --keep 0.8) pruned/")
def export(
    selection: Annotated[str, typer.Argument(help="A selection's name.")],
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Repack into even shards of at most so many.", min=1, show_default=False)
    ] = None,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="No images, only index.parquet (url, key, sample_id).")
    ] = False,
    workers: Workers = None,
    name: Name = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Write the selected samples as tar shards, byte for byte as they came, with a manifest."""
    from curate.stages.export import export as stage

    print(
        stage(
            catalog, selection, out, samples_per_shard=samples_per_shard, index_only=index_only, workers=workers or 1, name=name
        )
    )


@app.command(epilog="Example: curate gallery --scoring supervised_prototypes --count 8")
def gallery(
    scoring: Annotated[str, typer.Option(help="Scoring to go by.")] = "ssl_prototypes",
    by: Annotated[
        str | None, typer.Option(help="label or cluster (default: label, or cluster without labels).", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="Images a side and row.", min=1)] = 6,
    size: Annotated[int, typer.Option(help="Edge of an image in pixels.", min=8)] = 64,
    max_rows: Annotated[int, typer.Option(help="Classes shown, the largest.", min=1)] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write (default: in the catalog).", show_default=False)
    ] = None,
    catalog: CatalogOption = CATALOG,
) -> None:
    """Draw the easiest and the hardest images of each class."""
    from curate.stages.gallery import gallery as stage

    print(stage(catalog, scoring=scoring, by=by, count=count, size=size, max_rows=max_rows, out=out))


@app.command(epilog="Example: curate run clothing --set select.keep=0.5")
def run(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a name from `curate list recipes`.", metavar="RECIPE")],
    set: Annotated[list[str] | None, typer.Option("--set", help="stage.key=value", show_default=False)] = None,
    from_stage: Annotated[str | None, typer.Option("--from", help="Begin with this stage.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and show its steps.")] = False,
    strict: Strict = False,
    catalog: Annotated[
        Path | None,
        typer.Option("--catalog", "-c", envvar="CURATE_CATALOG", help="Folder of the catalog.", show_default="the recipe's"),
    ] = None,
) -> None:
    """Run a whole chain from a recipe; one that stopped goes on where it stopped."""
    from curate import recipe as recipes

    print(recipes.run(recipe, catalog, set=set, from_stage=from_stage, dry_run=dry_run))
    if not dry_run:
        _exit_partly(recipes.load(recipe, set or [], catalog)[0], strict=strict)


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


def _pair(text: str, option: str = "--param") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint=option)
    return name, value


def _exit_partly(catalog: Path | str, embedding: str | None = None, *, strict: bool) -> None:
    """End with the status that says so if samples or shards failed, in one embedding or in any."""
    from curate.progress import log
    from curate.stages.embed import num_failures

    if num_failures(catalog, embedding):
        log.info("some samples or shards failed: see `curate query failures -c %s`", catalog)
        raise typer.Exit(FAILED if strict else PARTLY)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point: turn errors into one line and an exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    # --quiet and --debug may stand anywhere before `--`, as people expect.
    ends = words.index("--") if "--" in words else len(words)
    shared = [word for word in words[:ends] if word in ("--quiet", "-q", "--debug")]
    words = shared + [word for place, word in enumerate(words) if place >= ends or word not in shared]
    call: Callable[..., Any] = app
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end, as by Ctrl-C
    try:
        call(args=words, prog_name="curate")
    except CurateError as error:
        _fail(str(error), debug="--debug" in shared)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's word for Ctrl-C
            print("curate: interrupted; what was finished is kept, and the same command goes on with the rest", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        raise SystemExit(FAILED) from None
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", debug="--debug" in shared)
    except Exception as error:  # a fault of ours still ends in one line; --debug tells the rest
        _fail(f"unexpected {type(error).__name__}: {error} (run again with --debug, and report it)", debug="--debug" in shared)
    raise SystemExit(0)


def _fail(message: str, *, debug: bool) -> NoReturn:
    if debug:
        raise  # noqa: PLE0704 - called from an except block only
    print(f"curate: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(FAILED) from None
