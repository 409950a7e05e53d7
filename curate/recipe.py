"""Recipes: whole runs as TOML. Tables are stages, keys are the stage's keyword arguments; the signature is the schema."""

import importlib
import inspect
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from curate import resources
from curate.errors import CurateError
from curate.progress import log

_LATER = ("CATALOG", "SELECTION")
STAGES = ("embed", "cluster", "probe", "score", "select", "validate", "export", "fit", "gallery", "report")


class Step(NamedTuple):
    """One call of a stage."""

    stage: str
    arguments: dict[str, Any]


def run(
    recipe: str | Path,
    catalog: str | Path | None = None,
    *,
    set: list[str] | None = None,
    from_stage: str | None = None,
    dry_run: bool = False,
) -> str:
    """Run a recipe (a path, or the name of one that is shipped), and return the last step's result.

    `set` holds texts such as `select.keep=0.5`. Steps whose sets are there already do nothing, so a run
    that stopped half-way goes on. Raises CurateError for what the recipe or an option has wrong, before any work.
    """
    catalog, steps = load(recipe, set or [], catalog)
    if from_stage:
        stages = [step.stage for step in steps]
        if from_stage not in stages:
            raise CurateError(f"the recipe has no [{from_stage}]; it has: {', '.join(dict.fromkeys(stages))}")
        steps = steps[stages.index(from_stage) :]
    result: Any = catalog
    known: dict[str, str] = {}
    for stage, arguments in steps:
        arguments = expand(arguments, known)
        log.info("[%s] %s", stage, " ".join(f"{key}={value!r}" for key, value in arguments.items()))
        if dry_run:
            continue
        if "SELECTION" not in known and "${SELECTION}" in str(arguments):
            raise CurateError(f"[{stage}] is about the selection that [select] makes: begin with --from select")
        result = stage_function(stage)(catalog, **arguments)
        if stage == "select":
            known["SELECTION"] = result
    return " ".join(result) if isinstance(result, list) else str(result)


def load(recipe: str | Path, overrides: list[str], catalog: str | Path | None = None) -> tuple[str, list[Step]]:
    """The catalog (the recipe's, unless one is given) and the recipe's steps, each checked against its stage."""
    path = find(recipe)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # wrong TOML and wrong UTF-8 are kinds of ValueError
        raise CurateError(f"'{path}' is no TOML: {error}") from error
    folder = tables.pop("catalog", "curated")
    if not isinstance(folder, str):
        raise CurateError(f"'{path}': catalog is the name of a folder")
    folder = str(catalog or folder)
    steps = []
    for stage, table in tables.items():
        calls = table if isinstance(table, list) else [table]
        if stage not in STAGES or not all(isinstance(call, dict) for call in calls):
            raise CurateError(f"'{path}': [{stage}] is no stage; there are: {', '.join(STAGES)}")
        steps += [Step(stage, {**call}) for call in calls]
    if not steps:
        raise CurateError(f"'{path}' has no step: write [embed], [cluster] and so on, with their options")
    for override in overrides:
        _override(steps, override)
    folder = expand(folder)
    return folder, [_checked(Step(step.stage, expand(step.arguments, {"CATALOG": folder})), path) for step in steps]


def find(recipe: str | Path) -> Path:
    """A recipe's file: the path itself, or the shipped recipe of that name."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    name = str(recipe).removesuffix(".toml")
    if "/" in name and name not in resources.names(resources.RECIPES, ".toml"):
        raise CurateError(f"no recipe at '{recipe}': check the path, or give a name from `curate list recipes`")
    try:
        return resources.find(resources.RECIPES, ".toml", name, "recipe")
    except CurateError as error:
        raise CurateError(f"{error}; and there is no file '{recipe}'") from error


def stage_function(stage: str) -> Callable[..., Any]:
    """The public function of a stage's module."""
    return getattr(importlib.import_module(f"curate.stages.{stage}"), stage)  # type: ignore[no-any-return]


def expand(value: Any, known: dict[str, str] | None = None) -> Any:
    """Put in what is written ${NAME}: `known` names, and without these environment variables.

    ${CATALOG} and ${SELECTION}, the last selection made, are left for later where they are not known yet.
    Raises CurateError for a variable that is not set.
    """
    if isinstance(value, list):
        return [expand(part, known) for part in value]
    if isinstance(value, dict):
        return {key: expand(part, known) for key, part in value.items()}
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if known and name in known:
            return known[name]
        if name in _LATER:
            return match.group()
        if name not in os.environ:
            raise CurateError(f"the recipe uses ${{{name}}}, which is not set: export {name}=…")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def _override(steps: list[Step], override: str) -> None:
    name, equals, text = override.partition("=")
    stage, dot, key = name.partition(".")
    chosen = [step for step in steps if step.stage == stage]
    if not (equals and dot and chosen):
        known = ", ".join(dict.fromkeys(step.stage for step in steps))
        raise CurateError(f"--set {override}: write stage.key=value with a stage of the recipe ({known})")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a plain word needs no quotes
    for step in chosen:
        step.arguments[key] = value


def _checked(step: Step, path: Path) -> Step:
    function = stage_function(step.stage)
    signature = inspect.signature(function)
    arguments = step.arguments
    options = list(signature.parameters)[1:]
    try:
        for key in arguments:  # before what is missing, because a slip of the pen causes both
            if key not in options:
                raise TypeError(f"got an unexpected keyword argument '{key}'")
        signature.bind("catalog", **arguments)
    except TypeError as error:
        raise CurateError(f"'{path}': [{step.stage}] {error}; it takes: {', '.join(options)}") from error
    hints = typing.get_type_hints(function)
    for key, value in arguments.items():
        if not _fits(value, hints[key]):
            raise CurateError(f"'{path}': [{step.stage}] {key} = {value!r} is not {_plainly(hints[key])}")
    check = getattr(importlib.import_module(f"curate.stages.{step.stage}"), "check", None)
    try:
        if check:
            check(**arguments)
    except CurateError as error:
        raise CurateError(f"'{path}': [{step.stage}] {error}") from error
    return step


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value can be an argument annotated with `hint`."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(part, typing.get_args(hint)[0]) for part in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = typing.get_origin(hint) or hint
    return isinstance(value, kind if isinstance(kind, type) else object)


def _plainly(hint: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names.get(part, str(part)) for part in parts if part not in (type(None), Path))
