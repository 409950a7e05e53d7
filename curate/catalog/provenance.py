"""Who made a set (version, commit, code), and fingerprints: must it be made again?"""

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGE = "curate"
_FOLDER = Path(__file__).resolve().parents[1]  # of the package


def version() -> str:
    """The installed version of this package; of a checkout that is not installed, no version."""
    try:
        return metadata.version("foundation-curate")
    except metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None where it was installed."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text().strip()
        packed = (git / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


def now() -> datetime:
    """The time in UTC, without a zone, as `runs` stores it."""
    return datetime.now(UTC).replace(tzinfo=None)


def canonical_json(arguments: dict[str, Any]) -> str:
    """The same JSON text for the same arguments."""
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"))


def fingerprint(stage: str, arguments: dict[str, Any], *inputs: str) -> str:
    """SHA-256 over a stage, its arguments, and the fingerprints of what it reads and of its code.

    Two sets with one fingerprint hold the same rows, so a stage whose set has it need not run.
    """
    text = "\n".join((stage, canonical_json(arguments), *inputs))
    return hashlib.sha256(text.encode()).hexdigest()


def module_checksum(module: str) -> str:
    """SHA-256 over the text of a module and of every curate module that it imports, transitively.

    What a function computes depends on the helpers it calls; a set that was made by other text is
    out of date.
    """
    return _checksum_with_imports({module: _module_path(module)})


def file_checksum(path: Path) -> str:
    """The same for a Python file of the user's own. Raises OSError."""
    return _checksum_with_imports({f"file {path.name}": path})


def _checksum_with_imports(roots: dict[str, Path | None]) -> str:
    texts: dict[str, bytes] = {}
    pending = dict(roots)
    while pending:
        module, path = pending.popitem()
        if module in texts or path is None:
            continue
        status = path.stat()
        text, imports = _read_module(path, status.st_mtime_ns, status.st_size)
        texts[module] = text
        for name in imports:
            for candidate in _with_parents(name):
                if candidate not in texts:
                    pending[candidate] = _module_path(candidate)
    digest = hashlib.sha256()
    for module in sorted(texts):
        digest.update(f"{module}\n{len(texts[module])}\n".encode())
        digest.update(texts[module])
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _read_module(path: Path, mtime_ns: int, num_bytes: int) -> tuple[bytes, tuple[str, ...]]:
    """The text of a Python file, and the names of curate that it imports, anywhere in it."""
    text = path.read_bytes()
    try:
        tree = ast.parse(text)
    except SyntaxError:  # importing it says what is wrong
        return text, ()
    return text, tuple(_imported_names(tree))


def _imported_names(tree: ast.Module) -> Iterator[str]:
    """Imported modules, and imported names, which may be modules too."""
    for node in _iterate_statements(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _iterate_statements(body: list[Any]) -> Iterator[ast.AST]:
    """Every statement, also within others. Expressions, most of a tree, hold no imports."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _iterate_statements(getattr(node, field, []))


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == _PACKAGE


def _with_parents(name: str) -> list[str]:
    """A module and the packages imported with it, without `curate`, which holds no code."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(2, len(words) + 1)]


def _module_path(module: str) -> Path | None:
    """The file of a module; None for a name that is no module."""
    if _is_ours(module):
        return _our_path(module)
    try:  # a module with functions of the user's own
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


@functools.cache
def _our_path(module: str) -> Path | None:
    """The same for this package, without importing the packages that the module is in."""
    path = _FOLDER.joinpath(*module.split(".")[1:])
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next(filter(Path.is_file, candidates), None)
