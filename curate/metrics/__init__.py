"""Metrics say how much a sample is worth keeping. To add one, write a function in a new module here:

    @metric
    def margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        ...

Its parameter names are its inputs; the tables from name to loader are in `curate/engine/scoring.py` and
`curate/stages/inputs.py`. Other parameters have defaults, and are options. It is called for some samples at a
time and returns float [n], or such scores and their standard errors. A high score always means worth keeping;
NaN means that the sample cannot be scored. With one in a file of your own: `curate score --from file.py:margin`.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curate import provenance
from curate.errors import CurateError
from curate.registry import Registry

metrics = Registry("metric", "curate.metrics")
metric = metrics.register


def find(name: str) -> Callable[..., Any]:
    """The metric of that name, or, for FILE.py:NAME, the function NAME of a file. Raises CurateError."""
    file, colon, function = name.rpartition(":")
    return _load(Path(file), function, _digest(Path(file))) if colon else metrics[name]


def source(name: str) -> str:
    """A checksum of the metric's code, so that what it made is known to be old once it is edited."""
    file, colon, _ = name.rpartition(":")
    return _digest(Path(file)) if colon else provenance.source(metrics[name])


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise CurateError(f"cannot read '{file}': {error.strerror}; write FILE.py:NAME") from error


@functools.cache
def _load(file: Path, function: str, digest: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"curate_metric_{digest[:12]}", file)
    if spec is None or spec.loader is None:
        raise CurateError(f"'{file}' is no Python file: write FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the boundary to code of the user's own
        raise CurateError(f"'{file}' cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise CurateError(f"'{file}' has no function '{function}'")
    return found  # type: ignore[no-any-return]
