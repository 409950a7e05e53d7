"""The function of a metric: a registered one by its name, or one in a file of the user's own."""

import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.metrics import metrics


def find_metric(spec: str) -> Callable[..., Any]:
    """The metric NAME, or for FILE.py:NAME the function NAME of a file. Raises CurateError."""
    path, function_name = split_spec(spec)
    if path is None:
        return metrics[function_name]
    return _load_function(path, function_name, _file_digest(path))


def split_spec(spec: str) -> tuple[Path | None, str]:
    """The file, or None for a registered metric, and the function's name."""
    path, colon, function_name = spec.rpartition(":")
    return (Path(path) if colon else None), function_name


def metric_parameters(spec: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a metric by their names: its inputs and its options."""
    return inspect.signature(find_metric(spec)).parameters


def input_names(spec: str) -> list[str]:
    """The names of a metric's parameters."""
    return list(metric_parameters(spec))


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CurateError(f"cannot read '{path}': {error.strerror}; write FILE.py:NAME") from error


@functools.cache
def _load_function(path: Path, function_name: str, digest: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"curate_metric_{digest[:12]}", path)
    if spec is None or spec.loader is None:
        raise CurateError(f"'{path}' is no Python file: write FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the boundary to code of the user's own
        raise CurateError(
            f"'{path}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise CurateError(f"'{path}' has no function '{function_name}'")
    return function  # type: ignore[no-any-return]
