"""Named functions that users extend: encoders, metrics, models, strategies."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from curate.errors import CurateError, OptionError


class Registry(dict[str, Callable[..., Any]]):
    """A dict from name to function; a missing name imports every module of `package` first."""

    def __init__(self, kind: str, package: str) -> None:
        super().__init__()
        self.kind, self.package = kind, package

    def register(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Use as a decorator: the function's own name is the name users type.

        Raises CurateError for a name that another module has taken.
        """
        name, previous = function.__name__, self.get(function.__name__)
        if previous is not None and previous.__module__ != function.__module__:
            raise CurateError(
                f"two {self.kind}s are called '{name}': "
                f"in {previous.__module__} and in {function.__module__}"
            )
        self[name] = function
        return function

    def load(self) -> "Registry":
        """Import every module of the package, so that all names are registered."""
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            name = f"{self.package}.{module.name}"
            try:
                importlib.import_module(name)
            except (ImportError, SyntaxError, NameError, TypeError, AttributeError) as error:
                raise CurateError(
                    f"the module {name} cannot be imported: {type(error).__name__}: {error}"
                ) from error
        return self

    def __missing__(self, name: str) -> Callable[..., Any]:
        self.load()
        if name in self:
            return self[name]
        raise OptionError(f"no {self.kind} called '{name}'; there are: {', '.join(sorted(self))}")
