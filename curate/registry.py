"""Named functions that users extend: encoders, metrics, strategies."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from curate.errors import CurateError


class Registry(dict[str, Callable[..., Any]]):
    """A dict from name to function that imports the modules of `package` when a name is first missed."""

    def __init__(self, kind: str, package: str) -> None:
        super().__init__()
        self.kind, self.package = kind, package

    def register(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Use as a decorator: the function's own name is the name users type."""
        self[function.__name__] = function
        return function

    def load(self) -> "Registry":
        """Import every module of the package, so that all names are known."""
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return self

    def __missing__(self, name: str) -> Callable[..., Any]:
        self.load()
        if name in self:
            return self[name]
        raise CurateError(f"no {self.kind} called '{name}'; there are: {', '.join(sorted(self))}")
