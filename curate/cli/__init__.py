"""The command line: parse, call one stage, print the name or path that it made."""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from curate.cli import making, showing
from curate.cli.options import FAILED, INTERRUPTED, app
from curate.errors import CurateError
from curate.units import printable

__all__ = ["app", "main", "making", "showing"]


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

    [bold]embed[/] SHARDS → [bold]cluster[/] → [bold]score[/] → [bold]select[/] → [bold]validate[/] → [bold]export[/].
    Begin with [bold]demo[/].
    """
    from curate import progress

    progress.show(messages=not quiet, bars=not quiet)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point: turn errors into one line and an exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    # --quiet and --debug may stand anywhere before `--`, as people expect.
    ends = words.index("--") if "--" in words else len(words)
    shared = [word for word in words[:ends] if word in ("--quiet", "-q", "--debug")]
    words = shared + [word for place, word in enumerate(words) if place >= ends or word not in shared]
    call: Callable[..., Any] = app
    _mend_streams()
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
        if type(error).__module__.lstrip("_").startswith("duckdb"):
            _fail(f"the catalog's database: {error}; `curate verify` says whether it is damaged", debug="--debug" in shared)
        _fail(f"unexpected {type(error).__name__}: {error} (run again with --debug, and report it)", debug="--debug" in shared)
    raise SystemExit(0)


def _mend_streams() -> None:
    """Output that was closed goes nowhere; signs that the terminal's encoding lacks are written as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, *, debug: bool) -> NoReturn:
    if debug:
        raise  # noqa: PLE0704 - called from an except block only
    print(f"curate: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(FAILED) from None
