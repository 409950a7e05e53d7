"""Train on a selection without a second copy of the corpus: a filter for a webdataset pipeline.

All that it needs is read from the catalog once, where it is made: 8 bytes a member, in memory that
loader workers share where they are forked. Workers never open the database.
"""

import hashlib
import os
import shlex
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import find_unknown_shards
from curate.errors import CurateError
from curate.formats.samples import to_unicode
from curate.storage import files
from curate.storage.checksums import file_checksum
from curate.storage.credentials import hide_credentials

# The weight goes into the sample under this key; webdataset passes on what starts with __.
WEIGHT_KEY = "__weight__"
# And how often it comes in an epoch under this one.
REPEATS_KEY = "__repeats__"

_KEY_HASHES = """
select samples.shard_id, md5_number_lower(key) as key_hash, weight, repeats
from members join samples using (sample_id)
where selection = ?
order by all
"""


class KnownShard(NamedTuple):
    """A shard of the corpus, and where the hashes of its members' keys start and stop."""

    url: str
    num_bytes: int
    checksum: str | None
    start: int
    stop: int
    is_unknown: bool  # it came to the corpus after the selection


class SelectionFilter:
    """Called with a webdataset sample: is it in the selection?

    Keys are compared by 64 bits of their MD5, within one shard. With `weights`, the call also puts
    the member's weight into the sample, under WEIGHT_KEY; with `repeats`, how often it comes in an
    epoch, under REPEATS_KEY.
    """

    def __init__(
        self,
        catalog: Catalog | str | Path,
        selection: str,
        root: str | os.PathLike[str] | Mapping[str, str] | None = None,
        *,
        weights: bool = False,
        repeats: bool = False,
    ) -> None:
        self.selection = selection
        self._mapping = _to_mapping(root)
        self._root = None if root is None or isinstance(root, Mapping) else files.resolve(root)
        catalog = Catalog(catalog)
        record = catalog.require(SelectionRecord, selection)
        if weights and not record.weights_by:
            raise CurateError(
                f"the selection '{selection}' has no weights: make one that has by "
                "`curate select --weights`"
            )
        if repeats and not record.repeats:
            raise CurateError(
                f"the selection '{selection}' has no repeats: make one that has by "
                "`curate select --repeats MAX`"
            )
        with catalog.reading() as connection:
            rows = connection.execute(
                "select shard_id, url, num_bytes, checksum from shards "
                "where num_samples is not null order by shard_id"
            ).fetchall()
            unknown = find_unknown_shards(connection, record)
            columns = connection.execute(_KEY_HASHES, [selection]).fetchnumpy()
        shard_ids = np.asarray(columns["shard_id"])
        self._hashes = array("Q", np.asarray(columns["key_hash"], np.uint64).tobytes())
        self._weights: array[float] | None = None
        if weights:
            self._weights = array("f", np.asarray(columns["weight"], np.float32).tobytes())
        self._repeats: array[int] | None = None
        if repeats:
            self._repeats = array("i", np.asarray(columns["repeats"], np.int32).tobytes())
        all_ids = np.array([row[0] for row in rows], np.int64)
        starts = np.searchsorted(shard_ids, all_ids)
        stops = np.searchsorted(shard_ids, all_ids, side="right")
        self._shards = [
            KnownShard(url, num_bytes, checksum, int(start), int(stop), shard_id in unknown)
            for (shard_id, url, num_bytes, checksum), start, stop in zip(
                rows, starts, stops, strict=True
            )
        ]
        self._by_url = {shard.url: shard for shard in self._shards}
        self._by_name: dict[str, list[KnownShard]] = {}
        for shard in self._shards:
            self._by_name.setdefault(files.filename(shard.url), []).append(shard)
        self._spans: dict[str, tuple[int, int]] = {}  # by the URLs that were met

    def __call__(self, sample: dict[str, Any]) -> bool:
        url = sample["__url__"]
        span = self._spans.get(url)
        if span is None:
            span = self._spans[url] = self._find_span(url)
        key_hash = hash_key(to_unicode(sample["__key__"]))
        index = bisect_left(self._hashes, key_hash, *span)
        is_kept = index < span[1] and self._hashes[index] == key_hash
        if is_kept and self._weights is not None:
            sample[WEIGHT_KEY] = self._weights[index]
        if is_kept and self._repeats is not None:
            sample[REPEATS_KEY] = self._repeats[index]
        return is_kept

    def _find_span(self, url: str) -> tuple[int, int]:
        """Where the hashes of a shard's members are. Raises CurateError for an unknown shard."""
        shard = self._find_shard(url)
        if shard.is_unknown:
            raise CurateError(
                f"'{self.selection}' was selected before the shard '{shard.url}' came to the "
                "corpus, so it says nothing of its samples: select again, or leave the shard out"
            )
        return shard.start, shard.stop

    def _find_shard(self, url: str) -> KnownShard:
        locations = list(_locations(url))
        for location in locations:
            shard = self._by_url.get(location) or self._find_mapped(location)
            if shard is not None:
                return shard
        for location in locations:
            shard = self._find_by_checksum(location)
            if shard is not None:
                return shard
        raise CurateError(
            f"the shard '{url}' is not in the catalog, by its URL or its bytes: give "
            "kept(…, root=FOLDER) for copies of the corpus, or root={'HERE': 'THERE'} for another "
            "prefix; a shard that is new must be embedded and selected from first"
        )

    def _find_mapped(self, location: str) -> KnownShard | None:
        """By `root`: a folder that has the corpus' shards, or prefixes and what they stand for."""
        for local_prefix, corpus_prefix in self._mapping.items():
            if location.startswith(local_prefix):
                shard = self._by_url.get(corpus_prefix + location.removeprefix(local_prefix))
                if shard is not None:
                    return shard
        if self._root is None or not location.startswith(f"{self._root.rstrip('/')}/"):
            return None
        relative = location.removeprefix(f"{self._root.rstrip('/')}/")
        candidates = [
            shard
            for shard in self._by_name.get(files.filename(location), [])
            if shard.url.endswith(f"/{relative}")
        ]
        if len(candidates) > 1:
            raise CurateError(
                f"the shard '{location}' may be '{candidates[0].url}' or '{candidates[1].url}': "
                "give kept(…, root={'HERE': 'THERE'}), prefixes in place of a folder"
            )
        if candidates and not files.is_url(location) and os.path.isfile(location):
            num_bytes = os.path.getsize(location)
            if num_bytes != candidates[0].num_bytes:
                raise CurateError(
                    f"'{location}' is no copy of '{candidates[0].url}': it has {num_bytes:,} "
                    f"bytes in place of {candidates[0].num_bytes:,}"
                )
        return candidates[0] if candidates else None

    def _find_by_checksum(self, location: str) -> KnownShard | None:
        """A file of this machine with the bytes of a shard, which is read once to see."""
        if files.is_url(location) or not os.path.isfile(location):
            return None
        num_bytes = os.path.getsize(location)
        same_size = [
            shard for shard in self._shards if shard.checksum and shard.num_bytes == num_bytes
        ]
        # One checksum of each kind: old catalogs have SHA-256.
        kinds = {len(shard.checksum): shard.checksum for shard in same_size if shard.checksum}
        checksums = {file_checksum(location, kind) for kind in kinds.values()}
        same_bytes = [shard for shard in same_size if shard.checksum in checksums]
        same_bytes.sort(key=lambda shard: files.filename(shard.url) != files.filename(location))
        return same_bytes[0] if same_bytes else None


def kept(
    catalog: Catalog | str | Path,
    selection: str,
    root: str | os.PathLike[str] | Mapping[str, str] | None = None,
    *,
    weights: bool = False,
    repeats: bool = False,
) -> SelectionFilter:
    """A predicate for `webdataset.WebDataset(urls).select(curate.kept(catalog, selection))`.

    It reads the catalog once, here, and works in loader workers, forked or spawned. A shard is
    known by its URL, also behind `pipe:`; by `root`, a folder with copies of the shards under the
    same names, or prefixes with what they stand for ({"/local/": "s3://bucket/"}); or by its
    bytes, for which a file of this machine is read once in each worker. Raises CurateError for an
    unknown selection, for a shard that the catalog does not know, and for one that came to the
    corpus after the selection. A key that comes twice in one shard is kept for both or neither.

    With `weights`, each sample has its weight of `curate select --weights` under `__weight__`, a
    float, 1 on average: `.to_tuple("jpg", "cls", "__weight__")`, and in the training loop
    `(weight * cross_entropy(logits, labels, reduction="none")).mean()`. CurateError where the
    selection has none.

    With `repeats`, each sample comes once, and has under `__repeats__` how often it should come in
    an epoch by `curate select --repeats`: a weight of the loss, if it is no reason to repeat it
    (`curate.stream` does). CurateError where the selection has none.
    """
    return SelectionFilter(catalog, selection, root, weights=weights, repeats=repeats)


def hash_key(key: str) -> int:
    """What DuckDB calls md5_number_lower: the last 8 bytes of the MD5, as a number."""
    digest = hashlib.md5(key.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little")


def _to_mapping(root: str | os.PathLike[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Prefixes as the catalog spells them; the longest first, which says most."""
    if not isinstance(root, Mapping):
        return {}
    longest_first = sorted(root, key=len, reverse=True)
    return {_spell_prefix(prefix): _spell_prefix(root[prefix]) for prefix in longest_first}


def _spell_prefix(prefix: str) -> str:
    """`resolve` takes away the slash at the end, which belongs to a prefix."""
    slash = "/" if prefix.endswith("/") and not files.is_url(prefix) else ""
    return files.resolve(prefix) + slash


def _locations(url: str) -> Iterator[str]:
    """What a loader's URL may stand for: a path or a URL; of a pipe, each word that may be one."""
    if not url.startswith("pipe:"):
        yield from _spellings(url)
        return
    command = url.removeprefix("pipe:")
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    for word in reversed(words):
        if "/" in word or word.endswith(".tar"):
            yield from _spellings(word)


def _spellings(url: str) -> Iterator[str]:
    """The location as the catalog stores it; also without the query of a signed URL."""
    location = files.resolve(url.removeprefix("file://").removeprefix("file:"))
    yield location
    if hide_credentials(location) != location:
        yield hide_credentials(location)
