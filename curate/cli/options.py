"""The app, the options that several commands share, and how a command ends."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

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
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=(1 << 32) - 1)]
Workers = Annotated[int | None, typer.Option("--workers", "-j", help="Worker processes.", min=1, show_default=False)]
EngineOption = Annotated[
    str,
    typer.Option("--engine", help="Where the work runs: local, or ray (a cluster; needs the extra ray).", metavar="local|ray"),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Of a running cluster (default: one of this machine).", show_default=False),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 instead of 3 if any sample or shard failed.")]
Within = Annotated[
    str | None, typer.Option(help="A selection that is all the corpus here.", metavar="SELECTION", show_default=False)
]
Embedding = Annotated[str | None, typer.Option(help="Which embedding (default: the only one).", show_default=False)]


def pair(text: str, option: str = "--param") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint=option)
    return name, value


def number_of_clusters(text: str) -> int | str:
    """What --k says: a number, or auto."""
    if text != "auto" and not text.isdecimal():
        raise typer.BadParameter("give a whole number, or auto", param_hint="--k")
    return text if text == "auto" else int(text)


def working_on(engine: str, address: str | None, workers: int | None = None) -> AbstractContextManager[None]:
    """The engine for the block; how many workers a cluster has, its size decides."""
    from curate.engine import ENGINES, on

    if engine not in ENGINES:
        raise typer.BadParameter(f"choose one of {', '.join(ENGINES)}", param_hint="--engine")
    if address and engine != "ray":
        raise typer.BadParameter("goes with --engine ray", param_hint="--ray-address")
    if workers and engine == "ray":
        raise typer.BadParameter("on a cluster, its size decides", param_hint="--workers")
    return on(engine, address)


def exit_partly(catalog: Path | str, embedding: str | None = None, *, strict: bool) -> None:
    """End with the status that says so if samples or shards failed, in one embedding or in any."""
    from curate.progress import log
    from curate.stages.embed import num_failures

    if num_failures(catalog, embedding):
        log.info("some samples or shards failed: see `curate query failures -c %s`", catalog)
        raise typer.Exit(FAILED if strict else PARTLY)
