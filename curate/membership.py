"""Train on a selection without a second copy of the corpus: a predicate for a webdataset pipeline."""

import os
from pathlib import Path
from typing import Any

from curate.catalog import Catalog
from curate.errors import CurateError
from curate.shards import readable


class Kept:
    """Call it with a webdataset sample: is it in the selection? Holds the keys of one shard at a time."""

    def __init__(self, catalog: Catalog | str | Path, selection: str) -> None:
        self.catalog, self.selection = Catalog(catalog), selection
        self.catalog.require("selection", selection)
        self._url, self._keys = "", frozenset[str]()

    def __call__(self, sample: dict[str, Any]) -> bool:
        url = sample["__url__"]
        if url != self._url:
            self._keys, self._url = self._load(url), url
        return readable(sample["__key__"]) in self._keys

    def _load(self, url: str) -> frozenset[str]:
        known = url if "://" in url else os.path.abspath(url.removeprefix("file://").removeprefix("file:"))
        with self.catalog.reading() as connection:
            if not connection.execute("select 1 from shards where url = ?", [known]).fetchone():
                raise CurateError(f"the shard '{known}' is not in the catalog: embed it, or give the path it was embedded from")
            rows = connection.execute(
                "select key from members join samples using (sample_id) join shards using (shard_id) "
                "where selection = ? and url = ?",
                [self.selection, known],
            ).fetchall()
        return frozenset(key for (key,) in rows)


def kept(catalog: Catalog | str | Path, selection: str) -> Kept:
    """A predicate for `webdataset.WebDataset(urls).select(curate.kept(catalog, selection))`.

    It works in loader workers too. Raises CurateError for an unknown selection, and for a shard that
    the catalog does not know. A key that comes twice in one shard is kept for both or neither.
    """
    return Kept(catalog, selection)
