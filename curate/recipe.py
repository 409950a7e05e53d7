"""Recipes: whole runs as TOML. Tables are verbs, keys are their options.

TOML has each table once in its place. `[[step]]` tables, which name their verb, have any order.
"""

import inspect
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from curate.errors import CurateError, OptionError
from curate.options import Option, check_arguments, read_parameters, verb
from curate.package_data import RECIPES_DIR, find_file, list_names
from curate.progress import log
from curate.verbs import RECIPE_VERBS, VERBS

# Variables that are known only while the recipe runs.
_RUN_VARIABLES = ("CATALOG", "SELECTION")
_RECIPE_FOLDER = "RECIPE_FOLDER"  # where the recipe lies, for metric files that come with it
_DEFAULT_CATALOG = "curated"
_STEP = "step"


class Step(NamedTuple):
    """One call of a verb."""

    verb: str
    arguments: dict[str, Any]


@verb()
def run(
    recipe: Annotated[
        str | Path, Option("A TOML file, or a name from `curate list recipes`.", metavar="RECIPE")
    ],
    catalog: str | Path | None = None,
    *,
    set: Annotated[  # the option's name
        list[str] | None, Option("An option of a step; repeatable.", metavar="STEP.KEY=VALUE")
    ] = None,
    from_step: Annotated[
        str | None, Option("Start at this step.", metavar="STEP", flag="--from")
    ] = None,
    dry_run: Annotated[bool, Option("Check the recipe and show its steps.")] = False,
) -> str:
    """Run a recipe, and return the last step's result.

    Steps whose sets exist already do nothing, so a run that stopped half-way continues. Raises
    CurateError for what is wrong with the recipe or an option, before any work.
    """
    catalog, steps = load_recipe(recipe, set or [], catalog)
    if from_step:
        names = [step.verb for step in steps]
        if from_step not in names:
            available = ", ".join(dict.fromkeys(names))
            raise OptionError(f"the recipe has no [{from_step}]; it has: {available}")
        steps = steps[names.index(from_step) :]
    result: Any = catalog
    variables: dict[str, str] = {}
    for name, arguments in steps:
        arguments = substitute_variables(arguments, variables)
        shown = {**_defaults(name), **arguments} if dry_run else arguments
        options = " ".join(f"{key}={value!r}" for key, value in shown.items())
        log.info("[%s] %s", name, options)
        if dry_run:
            continue
        if "SELECTION" not in variables and "${SELECTION}" in str(arguments):
            raise CurateError(
                f"[{name}] is about the selection that [select] makes: start with --from select"
            )
        function = VERBS[name].load()
        inputs = (catalog,) if "catalog" in inspect.signature(function).parameters else ()
        result = function(*inputs, **arguments)
        if name == "select":
            variables["SELECTION"] = result
    return " ".join(result) if isinstance(result, list) else str(result)


def load_recipe(
    recipe: str | Path, overrides: list[str], catalog: str | Path | None = None
) -> tuple[str, list[Step]]:
    """The catalog (the recipe's, unless one is given) and the steps, each checked."""
    path = find_recipe(recipe)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # wrong TOML and wrong UTF-8 are ValueErrors
        raise CurateError(f"'{path}' is no TOML: {error}") from error
    folder = tables.pop("catalog", _DEFAULT_CATALOG)
    if not isinstance(folder, str):
        raise OptionError(f"'{path}': catalog is the name of a folder")
    folder = str(catalog or folder)
    steps: list[Step] = []
    for name, table in tables.items():
        calls = table if isinstance(table, list) else [table]
        steps += [_read_step(name, call, path) for call in calls]
    if not steps:
        raise CurateError(
            f"'{path}' has no step: write [embed], [cluster] and so on, with their options"
        )
    for override in overrides:
        _apply_override(steps, override)
    folder = substitute_variables(folder)
    checked_steps = []
    for step in steps:
        variables = {"CATALOG": folder, _RECIPE_FOLDER: str(path.absolute().parent)}
        arguments = substitute_variables(step.arguments, variables)
        _check_step(step.verb, arguments, path)
        checked_steps.append(Step(step.verb, arguments))
    return folder, checked_steps


def _read_step(table_name: str, table: Any, path: Path) -> Step:
    """A table `[VERB]`, or a `[[step]]` with `verb = "VERB"`. Raises OptionError for another."""
    name, arguments = table_name, {**table} if isinstance(table, dict) else None
    if table_name == _STEP and arguments is not None:
        name = arguments.pop("verb", _STEP)
        if name == _STEP:
            raise OptionError(f"'{path}': [[step]] has no verb: write verb = \"select\" or another")
    if arguments is None or name not in RECIPE_VERBS:
        raise OptionError(f"'{path}': [{name}] is no step; there are: {', '.join(RECIPE_VERBS)}")
    return Step(name, arguments)


def find_recipe(recipe: str | Path) -> Path:
    """A recipe's file: the path itself, or the shipped recipe of that name."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    name = str(recipe).removesuffix(".toml")
    if "/" in name and name not in list_names(RECIPES_DIR, ".toml"):
        raise CurateError(
            f"no recipe at '{recipe}': check the path, or give a name from `curate list recipes`"
        )
    try:
        return find_file(RECIPES_DIR, ".toml", name, "recipe")
    except CurateError as error:
        raise CurateError(f"{error}; and there is no file '{recipe}'") from error


def substitute_variables(value: Any, variables: dict[str, str] | None = None) -> Any:
    """Replace ${NAME} by `variables`, or by environment variables.

    ${CATALOG} and ${SELECTION}, the last selection made, stay where they are not known yet. Raises
    CurateError for a variable that is not set.
    """
    if isinstance(value, list):
        return [substitute_variables(element, variables) for element in value]
    if isinstance(value, dict):
        return {key: substitute_variables(element, variables) for key, element in value.items()}
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if variables and name in variables:
            return variables[name]
        if name in _RUN_VARIABLES:
            return match.group()
        if name not in os.environ:
            raise CurateError(f"the recipe uses ${{{name}}}, which is not set: export {name}=…")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def _apply_override(steps: list[Step], override: str) -> None:
    target, equals, text = override.partition("=")
    name, dot, key = target.partition(".")
    matching = [step for step in steps if step.verb == name]
    if not (equals and dot and matching):
        available = ", ".join(dict.fromkeys(step.verb for step in steps))
        raise OptionError(
            f"--set {override}: write step.key=value with a step of the recipe ({available})"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a plain word needs no quotes
    for step in matching:
        step.arguments[key] = value


def _defaults(name: str) -> dict[str, Any]:
    """The options of a step that have a default, for people who look before they run."""
    parameters = read_parameters(VERBS[name].load())
    return {
        key: parameter.default for key, parameter in parameters.items() if not parameter.is_required
    }


def _check_step(name: str, arguments: dict[str, Any], path: Path) -> None:
    try:
        check_arguments(VERBS[name].load(), arguments)
    except CurateError as error:
        raise OptionError(f"'{path}': [{name}] {error}") from error
