"""Train on a selection without a second copy of the corpus: a filter for a webdataset pipeline."""

from pathlib import Path
from typing import Any

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.errors import CurateError
from curate.formats.samples import to_unicode
from curate.storage.credentials import hide_credentials
from curate.storage.files import resolve


class SelectionFilter:
    """Called with a webdataset sample: is it in the selection? Holds the keys of one shard."""

    def __init__(self, catalog: Catalog | str | Path, selection: str) -> None:
        self.catalog, self.selection = Catalog(catalog), selection
        self.catalog.require(SelectionRecord, selection)
        self._url, self._keys = "", frozenset[str]()

    def __call__(self, sample: dict[str, Any]) -> bool:
        url = sample["__url__"]
        if url != self._url:
            self._keys, self._url = self._load_keys(url), url
        return to_unicode(sample["__key__"]) in self._keys

    def _load_keys(self, url: str) -> frozenset[str]:
        location = hide_credentials(resolve(url.removeprefix("file://").removeprefix("file:")))
        with self.catalog.reading() as connection:
            if not connection.execute("select 1 from shards where url = ?", [location]).fetchall():
                raise CurateError(
                    f"the shard '{location}' is not in the catalog: "
                    "embed it, or give the path it was embedded from"
                )
            rows = connection.execute(
                "select key from members join samples using (sample_id) "
                "join shards using (shard_id) where selection = ? and url = ?",
                [self.selection, location],
            ).fetchall()
        return frozenset(key for (key,) in rows)


def kept(catalog: Catalog | str | Path, selection: str) -> SelectionFilter:
    """A predicate for `webdataset.WebDataset(urls).select(curate.kept(catalog, selection))`.

    It works in loader workers too. Raises CurateError for an unknown selection, and for a shard
    that the catalog does not know. A key that comes twice in one shard is kept for both or neither.
    """
    return SelectionFilter(catalog, selection)
