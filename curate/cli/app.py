"""The entry point: parse, call one verb, end with an exit status.

0 done; 1 failed, one line says why; 2 wrong usage; 3 done, but some samples or shards failed.
"""

import contextlib
import io
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from curate.cli.commands import COMMANDS, FAILED, INTERRUPTED, WRONG_USAGE
from curate.errors import CurateError, OptionError
from curate.formatting import escape_control_characters, is_unicode
from curate.progress import clear_line

# Typer's own class for wrong usage is not public, but the base of one that is.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ANYWHERE = ("--quiet", "-q", "--debug")  # may stand before or after the command


class _VerbGroup(TyperGroup):
    """Commands that are built when they are invoked: `curate --help` imports no stage."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name].verb.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, remaining = super().resolve_command(ctx, args)
        if name in COMMANDS:
            from curate.cli.builder import build_command

            command = build_command(name)
        return name, command, remaining


app = typer.Typer(
    name="curate",
    cls=_VerbGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 1 failed (one line says why); 2 wrong usage; "
    "3 done, but some samples or shards failed.",
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from curate.catalog.provenance import version

        print(version())
        raise typer.Exit


@app.callback()
def configure(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No messages and no progress bars on stderr.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Turn a corpus of images in shards into the smallest part that trains as good a model.

    [bold]embed[/] SHARDS → [bold]cluster[/] → [bold]score[/] → [bold]select[/] →
    [bold]validate[/] → [bold]export[/]. Start with [bold]demo[/].
    """
    from curate.progress import configure_output

    configure_output(messages=not quiet, bars=not quiet)
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line; every error becomes one line and an exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    options_end = words.index("--") if "--" in words else len(words)
    shared = [word for word in words[:options_end] if word in _ANYWHERE]
    words = shared + [
        word for index, word in enumerate(words) if index >= options_end or word not in _ANYWHERE
    ]
    debug = "--debug" in shared
    _repair_streams()
    _end_politely()
    _silence_libraries(debug=debug)
    _leave_out_pandas()
    _check_surroundings(words)
    command = typer.main.get_command(app)
    try:
        status = command.main(args=words, prog_name="curate", standalone_mode=False)
        if status == INTERRUPTED:  # Typer's status for Ctrl-C
            raise KeyboardInterrupt
    except OptionError as error:
        _fail(str(error), WRONG_USAGE, debug=debug)
    except CurateError as error:
        _fail(str(error), FAILED, debug=debug)
    except _UsageError as error:
        _fail_usage(error, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        clear_line()
        with contextlib.suppress(OSError):  # of a terminal that was closed
            print(
                "curate: interrupted; what was finished is kept, "
                "and the same command goes on with the rest",
                file=sys.stderr,
            )
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        raise SystemExit(FAILED) from None
    except OSError as error:
        location = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{location}", FAILED, debug=debug)
    except Exception as error:  # a bug of ours still ends in one line; --debug shows the rest
        if type(error).__module__.lstrip("_").startswith("duckdb"):
            message = f"the catalog's database: {error}; `curate verify` says whether it is damaged"
        else:
            message = f"unexpected {type(error).__name__}: {error} (--debug shows where; report it)"
        _fail(message, FAILED, debug=debug)
    raise SystemExit(status if isinstance(status, int) else 0)


def _repair_streams() -> None:
    """Closed streams discard what is written; characters without an encoding become escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_politely() -> None:
    """End as by Ctrl-C, with all that is cleared up then, also where a terminal is closed.

    Signals that are ignored stay so, as SIGHUP under nohup.
    """

    def interrupt(signal_number: int, frame: Any) -> NoReturn:
        if signal_number == signal.SIGHUP:  # a shell repeats it
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    for signal_number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(signal_number) != signal.SIG_IGN:
            signal.signal(signal_number, interrupt)


def _silence_libraries(*, debug: bool) -> None:
    """Keep what libraries warn of from stderr, in worker processes too, unless it is asked for.

    They read these variables when they are imported.
    """
    if debug:
        return
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class _NoPandas:
    """Finds no pandas for pyarrow and for ourselves; others, such as a user's metric, do."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """An import by pyarrow's compiled code is seen as one by the function that called it."""
        if name != "pandas":
            return
        frame: FrameType | None = sys._getframe(1)
        while frame and frame.f_globals.get("__name__", "").startswith("importlib."):
            frame = frame.f_back
        importer = frame.f_globals.get("__name__", "") if frame else ""
        if importer.partition(".")[0] in ("curate", "pyarrow"):
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")


def _leave_out_pandas() -> None:
    """pyarrow imports pandas to ask whether an array is one of its own.

    That takes as long as the rest of a small command.
    """
    sys.meta_path.insert(0, cast(Any, _NoPandas))
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # Typer looks for them everywhere


def _check_surroundings(words: list[str]) -> None:
    """Fail in one line where nothing could work: in a deleted folder, with words that are no text.

    Neither the database nor JSON can hold names that are not UTF-8.
    """
    try:
        os.getcwd()
    except OSError:
        _fail(
            "the working folder does not exist any more: change to another (cd)",
            FAILED,
            debug=False,
        )
    for word in words:
        if not is_unicode(word):
            message = f"'{word}' is not UTF-8: rename it, or use another name"
            _fail(message, WRONG_USAGE, debug=False)


def _fail(message: str, status: int, *, debug: bool) -> NoReturn:
    clear_line()
    if debug:
        raise  # noqa: PLE0704 - called from an except block only
    line = escape_control_characters(" ".join(message.split()))
    print(f"curate: {line}", file=sys.stderr)
    raise SystemExit(status) from None


def _fail_usage(error: Any, *, debug: bool) -> NoReturn:
    """Wrong usage that Typer found: unknown commands and options, missing arguments."""
    clear_line()
    if type(error).__name__.startswith("NoArgsIsHelp"):
        error.show()
        raise SystemExit(WRONG_USAGE) from None
    context = error.ctx
    unknown = getattr(error, "option_name", None)
    if unknown and context and context.info_name in COMMANDS:
        from curate.options import unknown_option

        function = COMMANDS[context.info_name].verb.load()
        name = unknown.lstrip("-").replace("-", "_")
        _fail(str(unknown_option(function, name)), WRONG_USAGE, debug=debug)
    command = context.command_path if context else "curate"
    _fail(f"{error.format_message()} (see `{command} --help`)", WRONG_USAGE, debug=debug)
