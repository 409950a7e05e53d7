"""Who made a set: version, commit, host; and fingerprints that say whether it must be made again."""

import hashlib
import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def version() -> str:
    """The installed version of this package."""
    return metadata.version("foundation-curate")


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, or None where it was installed from a wheel."""
    git = Path(__file__).resolve().parent.parent / ".git"
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


def canonical(arguments: dict[str, Any]) -> str:
    """The same JSON text for the same arguments."""
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"))


def fingerprint(stage: str, arguments: dict[str, Any], *parents: str) -> str:
    """SHA-256 over a stage, its arguments and the fingerprints of what it reads.

    Two sets with one fingerprint hold the same rows, so a stage whose set has it need not run again.
    """
    text = "\n".join((stage, canonical(arguments), *parents))
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> datetime:
    """The time in UTC, without a zone, as `runs` stores it."""
    return datetime.now(UTC).replace(tzinfo=None)


def source(function: Callable[..., Any]) -> str:
    """SHA-256 of a function's text, so that what it made is known to be old once it is edited."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
