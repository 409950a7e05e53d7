"""Which shards a user's patterns name: paths, folders, globs, brace ranges and URLs."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from curate.errors import CurateError
from curate.formats.samples import to_unicode
from curate.formatting import natural_sort_key
from curate.storage.files import glob_files, is_url


def expand_patterns(patterns: Iterable[str]) -> list[str]:
    """The locations of the shards that the patterns name, in natural order and each once.

    Local paths become absolute. Raises CurateError for a pattern that matches nothing, and for
    `pipe:`.
    """
    from braceexpand import braceexpand

    locations: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise CurateError(
                f"'{pattern}': curate never runs shell commands; give a path or a URL such as s3://…"
            )
        try:
            expanded = list(braceexpand(pattern.removeprefix("file://")))
        except ValueError as error:
            raise CurateError(f"'{pattern}' is no brace pattern: {error}") from error
        for plain_pattern in expanded:
            expand = _expand_url if is_url(plain_pattern) else _expand_path
            matches = expand(plain_pattern)
            if not matches:
                raise CurateError(
                    f"no shard at '{plain_pattern}': check the path (nothing was changed)"
                )
            locations.update(matches)
    for location in locations:
        if to_unicode(location) != location:
            raise CurateError(
                f"the name of the shard '{to_unicode(location)}' is no Unicode: rename it"
            )
    return sorted(locations, key=natural_sort_key)


def _expand_path(pattern: str) -> list[str]:
    path = Path(os.path.normpath(os.path.expanduser(pattern)))
    if path.is_dir():
        return [os.path.abspath(tar) for tar in path.glob("*.tar")]
    if path.exists():
        return [os.path.abspath(path)]
    return glob_files(str(path))


def _expand_url(pattern: str) -> list[str]:
    if ".." in pattern.split("/"):
        raise CurateError(f"'{pattern}': write the URL without '..'")
    if not re.search(r"[*?\[]", pattern):
        return [pattern]
    try:
        matches = glob_files(pattern)
    except OSError as error:
        raise CurateError(f"cannot list '{pattern}': {error.strerror or error}") from error
    for url in matches:
        if ".." in url.split("/"):
            raise CurateError(
                f"'{url}' has '..' in its name, and exports could not take it: rename it"
            )
    return matches
