"""Where a shard of the corpus is on this machine: at its own URL, or where `root` says."""

import itertools
import os
from collections.abc import Callable, Mapping

from curate.errors import CurateError
from curate.storage import files

Root = str | os.PathLike[str] | Mapping[str, str] | None


def make_locator(root: Root, urls: list[str]) -> Callable[[str], str]:
    """From a shard's URL to where it is read from.

    `root` is a folder that has the shards at their paths below the folder that all `urls` have in
    common, or prefixes here and the corpus' prefixes that they stand for
    ({"/local/": "s3://bucket/"}), as in `curate.kept`; the longest that fits counts. Raises
    CurateError, when it is called, for a shard without a place.
    """
    if root is None:
        return str
    if isinstance(root, Mapping):
        return _PrefixLocator({stored: local for local, stored in root.items()})
    words = [_folder(url).split("/") for url in urls]
    equal = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    common = "".join(f"{column[0]}/" for column in equal)
    return _PrefixLocator({common: f"{files.resolve(root)}/"})


class _PrefixLocator:
    """Puts another prefix in the place of a URL's own."""

    def __init__(self, prefixes: Mapping[str, str]) -> None:
        longest_first = sorted(prefixes, key=len, reverse=True)
        self._prefixes = {prefix: prefixes[prefix] for prefix in longest_first}

    def __call__(self, url: str) -> str:
        for prefix, replacement in self._prefixes.items():
            if url.startswith(prefix):
                return files.resolve(replacement + url.removeprefix(prefix))
        raise CurateError(
            f"root= says nothing of '{url}': name the prefix that it stands for, such as "
            f"{{'/local/': '{_folder(url)}/'}}"
        )


def _folder(url: str) -> str:
    return url.rpartition("/")[0]
