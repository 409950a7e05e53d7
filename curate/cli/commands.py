"""The commands: an example of each verb, and how its result is printed.

A command prints the name or path it made to stdout, everything else to stderr.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from curate.options import Option
from curate.verbs import VERBS, Verb

FAILED, WRONG_USAGE, PARTLY, INTERRUPTED = 1, 2, 3, 130

Strict = Annotated[bool, Option("Exit with 1 instead of 3 if any sample or shard failed.")]
TableFormat = Annotated[str, Option("How to print.", choices=("table", "json"), short="-f")]


def print_result(function: Callable[..., Any], *arguments: Any, options: dict[str, Any]) -> None:
    """The name or path that the verb made; several, one per line."""
    result = function(*arguments, **options)
    if result is not None and result != []:
        print("\n".join(result) if isinstance(result, list) else result)


def run_embed(
    function: Callable[..., Any], catalog: str, *, options: dict[str, Any], strict: Strict = False
) -> None:
    embedding = function(catalog, **options)
    print(embedding)
    _exit_if_partly(catalog, embedding, strict=strict)


def run_pack(
    function: Callable[..., Any], *, options: dict[str, Any], strict: Strict = False
) -> None:
    from curate.stages.pack.stage import num_left_out

    folder = function(**options)
    print(folder)
    if num_left_out(folder):
        raise typer.Exit(FAILED if strict else PARTLY)


def run_recipe(
    function: Callable[..., Any],
    catalog: str | None = None,
    *,
    options: dict[str, Any],
    strict: Strict = False,
) -> None:
    from curate.recipe import load_recipe

    print(function(catalog=catalog, **options))
    if not options.get("dry_run"):
        folder, _ = load_recipe(options["recipe"], options.get("set") or [], catalog)
        _exit_if_partly(folder, strict=strict)


def run_query(
    function: Callable[..., Any],
    catalog: str,
    *,
    options: dict[str, Any],
    format: Annotated[
        str | None,
        Option(
            "How to print.",
            choices=("table", "csv", "json", "parquet"),
            short="-f",
            default="the file's ending, or table",
        ),
    ] = None,
    out: Annotated[
        str | Path | None, Option("File to write (parquet needs one).", metavar="FILE", short="-o")
    ] = None,
    limit: Annotated[
        int, Option("Rows shown as a table; files and the other formats have all.", minimum=1)
    ] = 200,
) -> None:
    from curate.cli.output import write_query
    from curate.options import check_arguments
    from curate.stages.query import open_query

    check_arguments(function, options)
    with open_query(
        catalog,
        options["sql"],
        options.get("params"),
        allow_files=options.get("allow_files", False),
    ) as (connection, text):
        write_query(connection, text, format, Path(out) if out else None, limit)


def run_plan(
    function: Callable[..., Any],
    catalog: str,
    *,
    options: dict[str, Any],
    format: TableFormat = "table",
) -> None:
    from dataclasses import asdict

    from curate.cli.output import print_rows
    from curate.formatting import format_bytes, format_duration

    plans = function(catalog, **options)
    if format == "json":
        print_rows([asdict(stage_plan) for stage_plan in plans], format)
        return
    rows = [
        {
            "stage": stage_plan.stage,
            "samples": f"{stage_plan.samples:,}",
            "time": format_duration(stage_plan.seconds),
            "memory": format_bytes(stage_plan.memory),
            "disk": format_bytes(stage_plan.disk),
        }
        for stage_plan in plans
    ]
    print_rows(rows, format)


def run_advise(
    function: Callable[..., Any],
    catalog: str,
    *,
    options: dict[str, Any],
    format: TableFormat = "table",
) -> None:
    from dataclasses import asdict

    from curate.cli.output import print_rows
    from curate.stages.advise import Advice

    advice: list[Advice] = function(catalog, **options)
    if format == "json":
        print_rows([asdict(row) for row in advice], format)
        return
    rows = [
        {
            "budget": row.budget,
            "arm": row.arm,
            "samples": f"{row.num_samples:,}",
            **({"epochs": f"{row.epochs:.3g}"} if row.epochs is not None else {}),
            "wrong %": f"{100 * row.error:.2f} ± {100 * row.error_interval:.2f}",
            "points gained": _format_gain(row.gain, row.gain_interval),
            "fitted to": f"{row.least_fitted:,} to {row.largest_fitted:,}",
            "beyond": f"{row.beyond_fit:.3g} ×" if row.beyond_fit > 1 else "",
            "": "advised" if row.is_advised else "",
        }
        for row in advice
    ]
    print_rows(rows, format)


def _format_gain(gain: float | None, interval: float | None) -> str:
    if gain is None or interval is None:
        return ""
    return f"{100 * gain:+.2f} ± {100 * interval:.2f}"


def run_audit(
    function: Callable[..., Any],
    catalog: str,
    *,
    options: dict[str, Any],
    format: TableFormat = "table",
) -> None:
    from curate.cli.output import print_audit
    from curate.stages.audit.stage import StarvedGroupsError

    try:
        result = function(catalog, **options)
    except StarvedGroupsError as error:
        print_audit(error.audit, format)
        raise
    print_audit(result, format)


def run_compare(
    function: Callable[..., Any],
    catalog: str,
    *,
    options: dict[str, Any],
    format: TableFormat = "table",
) -> None:
    from curate.cli.output import print_comparison

    print_comparison(function(catalog, **options), format)


def run_theory(
    function: Callable[..., Any], *, options: dict[str, Any], format: TableFormat = "table"
) -> None:
    from curate.cli.output import print_rows

    result = function(**options)
    if isinstance(result, str):
        print(result)
    else:
        print_rows([result], format)


def run_verify(function: Callable[..., Any], catalog: str, *, options: dict[str, Any]) -> None:
    issues = function(catalog, **options)
    for issue in issues:
        print(issue)
    if issues:
        raise typer.Exit(FAILED)


def run_doctor(
    function: Callable[..., Any], *, options: dict[str, Any], format: TableFormat = "table"
) -> None:
    from curate.cli.output import print_rows

    print_rows([finding._asdict() for finding in function(**options)], format)


def run_demo(function: Callable[..., Any], *, options: dict[str, Any]) -> None:
    from curate.cli.output import print_demo
    from curate.options import read_parameters

    report = function(**options)
    folder = options.get("folder", read_parameters(function)["folder"].default)
    print_demo(Path(folder), report)


def _exit_if_partly(catalog: str, embedding: str | None = None, *, strict: bool) -> None:
    """End with the status that says so if samples or shards failed, in one embedding or in any."""
    from curate.progress import log
    from curate.stages.embed.stage import num_failures

    if num_failures(catalog, embedding):
        log.info("some samples or shards failed: see `curate query failures -c %s`", catalog)
        raise typer.Exit(FAILED if strict else PARTLY)


class Command(NamedTuple):
    """A verb on the command line; `next` is what usually follows, without `curate`."""

    verb: Verb
    examples: tuple[str, ...]
    handler: Callable[..., None] = print_result
    uses_engine: bool = False
    next: str = ""


COMMANDS = {
    "pack": Command(
        VERBS["pack"],
        ("curate pack photos/ shards/", "curate pack 'data/train-*.parquet' shards/"),
        run_pack,
        next="embed 'shards/*.tar'",
    ),
    "embed": Command(
        VERBS["embed"],
        ("curate embed 'corpus/{00000..00099}.tar' --encoder open_clip:ViT-B-32/openai",),
        run_embed,
        uses_engine=True,
        next="cluster",
    ),
    "import-vectors": Command(
        VERBS["import-vectors"],
        (
            "curate import-vectors clip-output 'corpus/*.tar'",
            "curate import-vectors metadata 'shards/*.tar' --array b32_img",
        ),
        run_embed,
        next="cluster",
    ),
    "import": Command(
        VERBS["import"],
        (
            "curate import scores.parquet --key key",
            "curate import scores.csv --key name --as-scoring aesthetic=score",
        ),
    ),
    "cluster": Command(
        VERBS["cluster"],
        ("curate cluster --k 1000 --distance cosine",),
        uses_engine=True,
        next="score ssl_prototypes",
    ),
    "dedup": Command(
        VERBS["dedup"],
        ("curate dedup", "curate dedup --eps 0.05 --against 'test/*.tar'"),
        uses_engine=True,
        next="query duplicates",
    ),
    "probe": Command(
        VERBS["probe"],
        (
            "curate probe",
            "curate probe --model ridge --fraction 0.7",
            "curate probe --model ridge --test 'test/*.tar'",
        ),
        uses_engine=True,
        next="score el2n",
    ),
    "score": Command(
        VERBS["score"],
        ("curate score ssl_prototypes el2n", "curate score --metric-file mine.py:my_metric"),
        uses_engine=True,
        next="validate --keep 0.8 --keep 0.5 --strategy hardest --strategy easiest",
    ),
    "select": Command(
        VERBS["select"], ("curate select --keep 0.8 --where 'width >= 200'",), next="report"
    ),
    "audit": Command(
        VERBS["audit"],
        (
            "curate audit el2n-hardest-0.1",
            "curate audit el2n-hardest-0.1 --by cluster --fail-below 0.5",
        ),
        run_audit,
        next="report",
    ),
    "compare": Command(
        VERBS["compare"],
        ("curate compare el2n-hardest-0.5 ssl_prototypes-hardest-0.5",),
        run_compare,
        next="report",
    ),
    "validate": Command(
        VERBS["validate"],
        (
            "curate validate --keep 0.8 --keep 0.5 --strategy hardest --strategy easiest "
            "--scoring el2n",
        ),
        next="select --keep auto",
    ),
    "export": Command(
        VERBS["export"],
        ("curate export $(curate select --keep 0.8) pruned/",),
        uses_engine=True,
        next="verify",
    ),
    "update": Command(
        VERBS["update"],
        ("curate update", "curate update --refit --compare"),
        uses_engine=True,
        next="report",
    ),
    "fit": Command(
        VERBS["fit"],
        (
            "curate fit --model mlp --model linear",
            "curate fit --form pure-power --scoring el2n --strategy hardest",
        ),
        next="advise --budget 25000",
    ),
    "advise": Command(
        VERBS["advise"],
        (
            "curate advise --budget 25000 --budget 4epochs",
            "curate advise --samples 1000000 --budget 500000 --extrapolate",
        ),
        run_advise,
    ),
    "query": Command(
        VERBS["query"],
        (
            "curate query class_balance",
            "curate query 'select count(*) from samples' --format csv",
        ),
        run_query,
    ),
    "report": Command(VERBS["report"], ("curate report report.html --scoring el2n",), next="view"),
    "gallery": Command(
        VERBS["gallery"], ("curate gallery --scoring supervised_prototypes --count 8",)
    ),
    "view": Command(
        VERBS["view"],
        ("curate view --selection el2n-hardest-0.5", "curate view --sample 20000 --out atlas.zip"),
    ),
    "verify": Command(
        VERBS["verify"],
        ("curate verify", "curate verify pruned --check-sources"),
        run_verify,
    ),
    "remove": Command(
        VERBS["remove"],
        ("curate remove scoring el2n", "curate remove shards 'corpus/wrong-*.tar' --force"),
    ),
    "forget": Command(
        VERBS["forget"],
        (
            "curate forget img_20190304 --rewrite-shards",
            "curate forget --keys-file requests.txt --receipt receipt.json",
        ),
    ),
    "rename": Command(VERBS["rename"], ("curate rename selection el2n-hardest-0.5 final",)),
    "plan": Command(
        VERBS["plan"],
        (
            "curate plan 'corpus/*.tar' --encoder efficientnet_lite0",
            "curate plan --samples 1000000000",
        ),
        run_plan,
        uses_engine=True,
    ),
    "doctor": Command(VERBS["doctor"], ("curate doctor",), run_doctor),
    "theory": Command(
        VERBS["theory"],
        ("curate theory --alpha-tot 8 --keep 0.3", "curate theory --figure 1a"),
        run_theory,
    ),
    "run": Command(
        VERBS["run"],
        ("curate run clothing --set select.keep=0.5",),
        run_recipe,
        uses_engine=True,
    ),
    "list": Command(
        Verb("curate.cli.listing", "print_list", "What there is to choose from."),
        ("curate list queries",),
    ),
    "demo": Command(VERBS["demo"], ("curate demo my-demo",), run_demo),
}
