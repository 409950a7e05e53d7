"""Options of the verbs: each stands once, in the signature of its function.

    @verb()
    def cluster(
        catalog: Catalog | str | Path,
        *,
        distance: Annotated[str, Option("Distance metric.", choices=DISTANCES)] = "cosine",
    ) -> str:

The command line, recipes and the reference in docs/ read name, type, default, allowed values and
help text from there. One check, `check_arguments`, says what is wrong with a value, whether it came
from the command line, from Python or from a recipe.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

from curate.errors import OptionError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Option:
    """What is known of one option. For a list, limits and checks hold for each value.

    `default` describes the default where the value itself (None) does not. `flag` is the name on
    the command line where it is not the parameter's own; `aliases` are old names, which work but
    are not shown. `check` raises CurateError for a bad value.
    """

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # an exclusive minimum
    below: float | None = None  # an exclusive maximum
    metavar: str = ""
    flag: str = ""  # such as --option
    short: str = ""  # such as -j
    aliases: tuple[str, ...] = ()
    default: str = ""
    check: Callable[[Any], object] | None = None


class Parameter(NamedTuple):
    """One parameter of a verb: its type without the annotation, and its option."""

    name: str
    type: Any
    default: Any
    option: Option
    is_positional: bool

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def flag(self) -> str:
        return self.option.flag or f"--{self.name.replace('_', '-')}"

    @property
    def display_name(self) -> str:
        """The name in messages: SHARDS or --batch-size."""
        return self.name.upper() if self.is_positional else self.flag

    @property
    def is_flag(self) -> bool:
        return self.type is bool

    @property
    def element_types(self) -> list[Any]:
        """The types that one value may have, without None; of a list, those of its values."""
        element_types: list[Any] = []
        for member in _union_members(self.type):
            if typing.get_origin(member) is list:
                element_types += _union_members(typing.get_args(member)[0])
            elif member is not types.NoneType:
                element_types.append(member)
        return element_types

    @property
    def is_list(self) -> bool:
        return any(typing.get_origin(member) is list for member in _union_members(self.type))

    @property
    def is_mapping(self) -> bool:
        return any(typing.get_origin(member) is dict for member in _union_members(self.type))


def verb(
    check: Callable[[Mapping[str, Any]], object] | None = None,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Make a function a verb: its arguments are checked before it runs.

    `check` is called with all arguments, defaults included, and raises OptionError for those that
    contradict each other.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            for name in kwargs:
                if name not in signature.parameters:
                    raise unknown_option(checked, name)
            check_arguments(checked, signature.bind_partial(*args, **kwargs).arguments)
            return function(*args, **kwargs)

        checked.check_together = check  # type: ignore[attr-defined]
        return checked

    return decorate


@functools.cache
def read_parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a verb that have an option, by name, in order."""
    parameters = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = parameter.annotation
        options = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Option)]
        if options:
            is_positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            plain_type = typing.get_args(hint)[0]
            parameters[name] = Parameter(
                name, plain_type, parameter.default, options[0], is_positional
            )
    return parameters


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """OptionError for an argument that does not exist, is missing, or cannot be."""
    signature = inspect.signature(function)
    parameters = read_parameters(function)
    for name in arguments:  # first, because a misspelling also leaves an argument missing
        if name not in signature.parameters:
            raise unknown_option(function, name)
    for name, parameter in parameters.items():
        if name in arguments:
            check_value(parameter, arguments[name])
        elif parameter.is_required:
            raise OptionError(f"{function.__name__}: {parameter.display_name} is missing")
    check_together = getattr(function, "check_together", None)
    if check_together:
        defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if not parameter.is_required
        }
        check_together({**defaults, **arguments})


def check_value(parameter: Parameter, value: Any) -> None:
    """OptionError where a value has another type than the parameter, or is out of range."""
    if value is None and types.NoneType in _union_members(parameter.type):
        return
    if parameter.is_mapping:
        if not isinstance(value, dict):
            raise _invalid(parameter, value)
        return
    if isinstance(value, list | tuple) and parameter.is_list:
        values = list(value)
    elif isinstance(value, list | tuple) or not _accepts_single(parameter):
        raise _invalid(parameter, value)
    else:
        values = [value]
    option = parameter.option
    for element in values:
        if not any(_has_type(element, hint) for hint in parameter.element_types):
            # keep = "0.5" in a recipe is a text: the message shows the quotes, which are the error.
            raise _invalid(parameter, repr(element) if _is_number_text(element) else element)
        if option.choices and element not in option.choices:
            raise _invalid(parameter, element)
        if isinstance(element, int | float) and not _in_range(option, element):
            raise _invalid(parameter, element)
        if option.check:
            option.check(element)


def parse_text(parameter: Parameter, text: str) -> Any:
    """The value that a word of the command line stands for. Raises OptionError."""
    for hint in parameter.element_types:
        if typing.get_origin(hint) is Literal and text in typing.get_args(hint):
            return text
        if hint in (int, float):
            try:
                return hint(text)
            except ValueError:
                continue
        if hint in (str, Path):
            return text
    raise _invalid(parameter, text)


def parse_pair(parameter: Parameter, text: str) -> tuple[str, str]:
    """A word NAME=VALUE of the command line. Raises OptionError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"{parameter.display_name} {text}: give NAME=VALUE")
    return name, value


def unknown_option(function: Callable[..., Any], name: str) -> OptionError:
    """The error for an option that a verb does not have."""
    names = ", ".join(read_parameters(function))
    return OptionError(f"{function.__name__} has no option '{name}'; it takes: {names}")


def describe_values(parameter: Parameter) -> str:
    """What a value may be: `a whole number from 1, or auto`."""
    option = parameter.option
    if option.choices:
        return f"one of {', '.join(option.choices)}"
    descriptions: list[str] = []
    for hint in parameter.element_types:
        if typing.get_origin(hint) is Literal:
            descriptions += typing.get_args(hint)
        elif hint is not Path or str not in parameter.element_types:
            descriptions.append(_TYPE_NAMES.get(hint, "a text") + _describe_range(option, hint))
    if parameter.is_mapping:
        descriptions = ["names with values"]
    return ", or ".join(dict.fromkeys(descriptions))


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _describe_range(option: Option, hint: Any) -> str:
    if hint not in (int, float):
        return ""
    limits = [
        f"{word} {limit:,g}" if isinstance(limit, float) else f"{word} {limit:,}"
        for word, limit in (
            ("from", option.minimum),
            ("above", option.above),
            ("up to", option.maximum),
            ("below", option.below),
        )
        if limit is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _invalid(parameter: Parameter, value: Any) -> OptionError:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    expected = describe_values(parameter)
    verb_word = "choose" if parameter.option.choices else "give"
    return OptionError(f"{parameter.display_name} {shown}: {verb_word} {expected}")


def _union_members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return list(typing.get_args(hint))
    return [hint]


def _accepts_single(parameter: Parameter) -> bool:
    return any(
        typing.get_origin(member) is not list and member is not types.NoneType
        for member in _union_members(parameter.type)
    )


def _has_type(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    expected = typing.get_origin(hint) or hint
    return isinstance(value, expected) if isinstance(expected, type) else True


def _is_number_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _in_range(option: Option, value: float) -> bool:
    return (
        (isinstance(value, int) or math.isfinite(value))
        and (option.minimum is None or value >= option.minimum)
        and (option.maximum is None or value <= option.maximum)
        and (option.above is None or value > option.above)
        and (option.below is None or value < option.below)
    )


# -- options that several verbs have ---------------------------------------------------------------

Seed = Annotated[int, Option("Random seed.", minimum=0, maximum=(1 << 32) - 1)]
Workers = Annotated[int, Option("Worker processes.", minimum=1, short="-j")]
WorkersPerCore = Annotated[
    int | None, Option("Worker processes.", minimum=1, short="-j", default="one per core")
]
Device = Annotated[
    str, Option("Where models run; auto takes the GPUs there are.", choices=("auto", "cpu", "cuda"))
]
SetName = Annotated[str | None, Option("Name of the result.", default="from the options")]
EmbeddingName = Annotated[
    str | None, Option("Name of the embedding.", default="required if there are several")
]
Within = Annotated[
    str | None,
    Option(
        "Use only the members of this selection, as if they were the whole corpus.",
        metavar="SELECTION",
    ),
]
Keep = Annotated[float, Option("Fraction to keep.", above=0, maximum=1, metavar="F")]
Epochs = Annotated[
    int | None,
    Option("Training epochs.", minimum=1, default="by model and size of the corpus"),
]
TestShards = Annotated[
    list[str] | str | None,
    Option("Test shards; repeatable.", metavar="SHARDS"),
]
