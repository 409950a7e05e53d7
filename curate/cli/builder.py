"""From a verb's function to its command: options, help and parsing come from its signature."""

import functools
import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from curate.cli.commands import COMMANDS, Command
from curate.errors import OptionError
from curate.options import (
    Option,
    Parameter,
    check_value,
    parse_pair,
    parse_text,
    read_parameters,
)
from curate.progress import clear_line, log, waiting

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}
_CATALOG_OPTION = Option("Folder of the catalog.", metavar="DIR", short="-c")
_DEFAULT_CATALOG = "curated"
_ENGINE_OPTIONS = {
    "engine": Option(
        "Where the work runs: on this machine, or on a cluster (needs the extra ray).",
        choices=("local", "ray"),
    ),
    "ray_address": Option("Address of a running Ray cluster.", default="one on this machine"),
}
_TYPE_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "FILE"}


class _VerbCommand(TyperCommand):
    """A command that refuses an option that is given twice and counts once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # The order has an entry for each occurrence of an option.
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in order:
            if parameter.param_type_name == "option" and not parameter.multiple:
                count = sum(other is parameter for other in order)
                if count > 1:
                    flag = max(parameter.opts, key=len)
                    raise OptionError(f"{flag} is given {count} times, and counts once: give one")
        return super().parse_args(ctx, args)


def build_command(name: str) -> Any:
    """The Typer command of a verb."""
    command = COMMANDS[name]
    function = command.verb.load()
    parameters = dict(read_parameters(function))
    output_parameters = read_parameters(command.handler)
    engine_parameters = _engine_parameters() if command.uses_engine else {}
    catalog_parameter = _catalog_parameter(function)
    every_parameter = {**parameters, **output_parameters, **engine_parameters}
    if catalog_parameter:
        every_parameter["catalog"] = catalog_parameter

    def invoke(**words: Any) -> None:
        clear_line()
        values = _parse_words(every_parameter, words)
        output_options = {key: values.pop(key) for key in output_parameters if key in values}
        for key, value in output_options.items():
            check_value(output_parameters[key], value)
        engine_options = {key: values.pop(key) for key in engine_parameters if key in values}
        arguments = [values.pop("catalog")] if "catalog" in values else []
        with _use_engine(engine_options, values):
            command.handler(
                _say_while_running(function, name), *arguments, options=values, **output_options
            )
        _suggest_next(command, arguments, values)

    invoke.__signature__ = _make_signature(every_parameter)  # type: ignore[attr-defined]
    invoke.__annotations__ = {
        parameter.name: parameter.annotation
        for parameter in inspect.signature(invoke).parameters.values()
    }
    app = typer.Typer(
        add_completion=False, rich_markup_mode="rich", context_settings=CONTEXT_SETTINGS
    )
    app.command(
        name, cls=_VerbCommand, help=_help_text(command, function), epilog=_epilog(command)
    )(invoke)
    return get_command(app)


def _suggest_next(command: Command, arguments: list[Any], values: dict[str, Any]) -> None:
    """The last line: the command that usually follows."""
    if not command.next:
        return
    catalog = arguments[0] if arguments else values.get("catalog", _DEFAULT_CATALOG)
    option = "" if catalog == _DEFAULT_CATALOG else f" -c {shlex.quote(str(catalog))}"
    log.info("next: curate %s%s", command.next, option)


def _say_while_running(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The verb, during which a terminal says that it is running, from the first moment."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with waiting(f"{name}: starting"):
            return function(*arguments, **options)

    return run


def _catalog_parameter(function: Callable[..., Any]) -> Parameter | None:
    parameter = inspect.signature(function).parameters.get("catalog")
    if parameter is None:
        return None
    is_optional = parameter.default is not inspect.Parameter.empty
    default = None if is_optional else _DEFAULT_CATALOG
    option = _CATALOG_OPTION
    if is_optional:
        option = Option(option.help, metavar="DIR", short="-c", default="the recipe's")
    return Parameter("catalog", str, default, option, is_positional=False)


def _engine_parameters() -> dict[str, Parameter]:
    defaults = {"engine": "local", "ray_address": None}
    return {
        name: Parameter(name, str, defaults[name], option, is_positional=False)
        for name, option in _ENGINE_OPTIONS.items()
    }


def _use_engine(engine_options: dict[str, Any], values: dict[str, Any]) -> Any:
    """The engine for the block; on a cluster, its size decides how many workers there are."""
    import contextlib

    name, address = engine_options.get("engine", "local"), engine_options.get("ray_address")
    if name == "local" and not address:
        return contextlib.nullcontext()
    if values.get("workers"):
        raise OptionError("--workers: on a cluster, its size decides")
    from curate.execution.engine import use_engine

    return use_engine(name, address)


def _make_signature(parameters: dict[str, Parameter]) -> inspect.Signature:
    """Every value is text here, and None where it was not given: parsing is `parse_text`'s."""
    keyword_parameters = []
    for name, parameter in parameters.items():
        annotation: Any
        if parameter.is_flag:
            info = typer.Option(parameter.flag, help=parameter.option.help)
            annotation, default = Annotated[bool, info], False
        else:
            annotation, default = _text_annotation(parameter, _typer_info(parameter)), None
            if parameter.is_positional and parameter.is_required:
                default = inspect.Parameter.empty  # type: ignore[assignment]
        keyword_parameters.append(_keyword(name, annotation, default))
        for alias in parameter.option.aliases:
            hidden = typer.Option(f"--{alias}", hidden=True)
            if parameter.is_flag:
                keyword_parameters.append(
                    _keyword(_alias_name(alias), Annotated[bool, hidden], False)
                )
            else:
                annotation = _text_annotation(parameter, hidden)
                keyword_parameters.append(_keyword(_alias_name(alias), annotation, None))
    return inspect.Signature(keyword_parameters)


def _text_annotation(parameter: Parameter, info: Any) -> Any:
    if parameter.is_list or parameter.is_mapping:
        return Annotated[list[str] | None, info]
    return Annotated[str | None, info]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _alias_name(alias: str) -> str:
    return f"alias_{alias.replace('-', '_')}"


def _typer_info(parameter: Parameter) -> Any:
    option = parameter.option
    options: dict[str, Any] = {
        "help": option.help,
        "metavar": _metavar(parameter),
        "show_default": _default_text(parameter),
    }
    if parameter.is_positional:
        return typer.Argument(**options)
    if parameter.name == "catalog":
        options["envvar"] = "CURATE_CATALOG"
    flags = [parameter.flag, option.short] if option.short else [parameter.flag]
    return typer.Option(*flags, **options)


def _metavar(parameter: Parameter) -> str:
    option = parameter.option
    if option.metavar:
        return option.metavar
    if option.choices:
        return "|".join(option.choices)
    if parameter.is_positional:
        return parameter.name.upper()
    return next(
        (_TYPE_METAVARS[hint] for hint in parameter.element_types if hint in _TYPE_METAVARS),
        "TEXT",
    )


def _default_text(parameter: Parameter) -> str | bool:
    if parameter.option.default:
        return parameter.option.default
    if parameter.is_required:
        return "required" if not parameter.is_positional else False
    return False if parameter.default is None else str(parameter.default)


def _parse_words(parameters: dict[str, Parameter], words: dict[str, Any]) -> dict[str, Any]:
    """The values that were given, parsed. An alias stands for its option."""
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        text = words[name]
        for alias in parameter.option.aliases:
            text = words[_alias_name(alias)] or text
        if parameter.is_flag:
            if text:
                values[name] = True
        elif parameter.is_mapping:
            if text:
                values[name] = dict(parse_pair(parameter, word) for word in text)
        elif parameter.is_list:
            if text:
                values[name] = [parse_text(parameter, word) for word in text]
        elif text is not None:
            values[name] = parse_text(parameter, text)
        elif name == "catalog" and parameter.default is not None:
            values[name] = parameter.default
    return values


def _help_text(command: Command, function: Callable[..., Any]) -> str:
    """The summary, and what the function's docstring explains of it."""
    return command.verb.summary


def _epilog(command: Command) -> str:
    title = "Example" if len(command.examples) == 1 else "Examples"
    return f"{title}: {' · '.join(command.examples)}"
