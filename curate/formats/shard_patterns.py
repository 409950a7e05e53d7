"""Which shards a user's patterns name: paths, folders, globs, brace ranges and URLs."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from curate.errors import CurateError
from curate.formats.samples import to_unicode
from curate.formatting import natural_sort_key
from curate.progress import log
from curate.storage.credentials import hide_credentials, remember_credentials
from curate.storage.files import filename, glob_files, is_folder, is_url, list_files
from curate.storage.web import is_web_url

# What compressed tars are called, and the command that unpacks them.
_UNPACK_COMMANDS = {
    ".gz": "gunzip -k",
    ".tgz": "gunzip -k",
    ".bz2": "bunzip2 -k",
    ".xz": "unxz -k",
    ".zst": "unzstd",
}
_COMPRESSED = re.compile(r"(\.tar\.(gz|bz2|xz|zst)|\.tgz)$", re.IGNORECASE)
_MAX_ENDINGS_SHOWN = 4
_MAX_MISSING_SHOWN = 20


def expand_patterns(patterns: Iterable[str], *, allow_missing: bool = False) -> list[str]:
    """The locations of the shards that the patterns name, in natural order and each once.

    Local paths become absolute. Signatures and passwords in URLs are no part of a location; this
    process remembers them. Raises CurateError for patterns that match nothing, all at once, and for
    `pipe:`; with `allow_missing` those are said and left out, if others match.
    """
    from braceexpand import braceexpand

    locations: set[str] = set()
    missing: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise CurateError(
                f"'{pattern}': curate never runs shell commands; give a path or a URL such as s3://…"
            )
        try:
            expanded = list(braceexpand(pattern.removeprefix("file://")))
        except ValueError as error:
            raise CurateError(
                f"'{hide_credentials(pattern)}' is no brace pattern: {error}"
            ) from error
        for plain_pattern in expanded:
            expand = _expand_url if is_url(plain_pattern) else _expand_path
            matches = expand(plain_pattern)
            if not matches:
                missing.append(hide_credentials(plain_pattern))
            locations.update(matches)
    if missing:
        report_missing(missing, len(locations), allow_missing=allow_missing)
    for location in locations:
        if to_unicode(location) != location:
            raise CurateError(
                f"the name of the shard '{to_unicode(location)}' is no Unicode: rename it"
            )
    by_identity: dict[str, str] = {}
    for location in sorted(locations, key=natural_sort_key):
        identity = hide_credentials(location)
        if _COMPRESSED.search(identity):
            raise CurateError(_refuse_compressed(identity))
        if identity in by_identity:
            raise CurateError(
                f"two URLs of '{identity}' differ in their query only, which is taken for a "
                "signature: give each shard a name of its own"
            )
        by_identity[identity] = location
    return [remember_credentials(location) for location in by_identity.values()]


def hide_patterns(patterns: Iterable[str]) -> list[str]:
    """The patterns without secrets, as they may be stored; this process remembers the secrets.

    Raises CurateError as `expand_patterns` does.
    """
    return [hide_credentials(pattern) for pattern in patterns if expand_patterns([pattern])]


def report_missing(missing: list[str], num_found: int, *, allow_missing: bool) -> None:
    """Name the shards that are missing, in a CurateError or, where they are allowed, a warning."""
    if len(missing) == 1 and not num_found:
        raise CurateError(_explain_no_match(missing[0]))
    names = ", ".join(missing[:_MAX_MISSING_SHOWN])
    if len(missing) > _MAX_MISSING_SHOWN:
        names += f" and {len(missing) - _MAX_MISSING_SHOWN:,} more"
    problem = f"{len(missing):,} of {len(missing) + num_found:,} shards are missing: {names}"
    if not allow_missing or not num_found:
        remedy = "check the paths"
        if num_found:
            remedy += f", or embed the {num_found:,} others with --allow-missing"
        raise CurateError(f"{problem}; {remedy} (nothing was changed)")
    log.warning("%s; going on without them", problem)


def _expand_path(pattern: str) -> list[str]:
    path = Path(os.path.normpath(os.path.expanduser(pattern)))
    if path.is_dir():
        return [os.path.abspath(tar) for tar in path.glob("*.tar")]
    if path.exists():
        return [os.path.abspath(path)]
    return glob_files(str(path))


def _expand_url(pattern: str) -> list[str]:
    identity = hide_credentials(pattern)
    if ".." in identity.split("/"):
        raise CurateError(f"'{identity}': write the URL without '..'")
    # The host of a web address may be [::1], and what follows a ? is no part of a name.
    name = identity.partition("://")[2].partition("/")[2] if is_web_url(pattern) else identity
    try:
        if re.search(r"[*?\[]", name):
            if "?" in pattern and is_web_url(pattern):
                raise CurateError(f"'{identity}': a signature is for one file: name each shard")
            matches = glob_files(pattern)
        elif _is_folder(identity):
            matches = list_files(pattern, "*.tar")
        else:
            return [pattern]
    except OSError as error:
        raise CurateError(f"cannot list '{identity}': {error.strerror or error}") from error
    for url in map(hide_credentials, matches):
        if ".." in url.split("/"):
            raise CurateError(
                f"'{url}' has '..' in its name, and exports could not take it: rename it"
            )
    return matches


def _is_folder(url: str) -> bool:
    """Whether a URL names a folder: of a web server by its slash, of a store by what is there."""
    if url.endswith("/"):
        return True
    is_shard = filename(url).lower().endswith(".tar") or _COMPRESSED.search(url)
    return not is_shard and not is_web_url(url) and is_folder(url)


def _explain_no_match(location: str) -> str:
    """What is at a place without shards, and what helps."""
    try:
        names = [filename(file) for file in list_files(location)]
    except OSError:
        names = []
    compressed = next((name for name in names if _COMPRESSED.search(name)), None)
    if compressed:
        return _refuse_compressed(f"{location.rstrip('/')}/{compressed}")
    if names:
        endings = Counter(
            Path(name).suffix.lower() or "without an ending" for name in sorted(names)
        )
        counts = [f"{count:,} {ending}" for ending, count in endings.most_common()]
        shown = ", ".join(counts[:_MAX_ENDINGS_SHOWN])
        return f"no .tar in '{location}', but {shown}: check the path (nothing was changed)"
    return f"no shard at '{location}': check the path (nothing was changed)"


def _refuse_compressed(location: str) -> str:
    ending = Path(location).suffix
    command = _UNPACK_COMMANDS[ending.lower()]
    if is_url(location):
        where = f"unpack it there, as `{command}` does with a local copy"
    else:
        folder, _, _ = location.rpartition("/")
        where = f"unpack it: {command} {shlex.quote(folder)}/*{ending}"
    return (
        f"'{location}' is compressed, and samples need byte offsets in a plain tar: {where} "
        "(nothing was changed)"
    )
