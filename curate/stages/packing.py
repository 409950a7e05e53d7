"""What an export holds: the members of a selection in tar order, dealt out to output shards; read in batches."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate import resources, sets
from curate.catalog import Catalog
from curate.engine.copying import Output, Piece, Source, renamed_key
from curate.errors import CurateError
from curate.shards import first_sample_id

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BATCH = 1 << 18  # members held at once, and those of a shard more


class Rows(NamedTuple):
    """Members in tar order: ids, shard ids, offsets and lengths int64 [n], keys as text."""

    ids: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray

    def part(self, start: int, stop: int) -> "Rows":
        return Rows(*(column[start:stop] for column in self))

    def and_then(self, more: "Rows") -> "Rows":
        return Rows(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))


class Packed(NamedTuple):
    """One output shard, or none where only an index is wanted; its members, and the keys that they have in it."""

    output: Output | None
    rows: Rows
    keys: list[str]


class Members:
    """The members of a selection. Raises CurateError where some are gone from the corpus."""

    def __init__(self, catalog: Catalog, selection: dict[str, Any]) -> None:
        self._catalog, self._selection, self._made = catalog, selection["selection"], selection["fingerprint"]
        with catalog.reading() as connection:
            self._check_same(connection)
            # Shards leave the corpus as a whole, and their ids never come again: a member is there if its shard is.
            found = connection.execute(resources.sql("stages/members_by_shard"), [self._selection]).fetchall()
        self.sources = {shard_id: Source(*source) for shard_id, *source, _ in found}
        self.counts = {row[0]: int(row[-1]) for row in found}
        lost = selection["num_samples"] - len(self)
        if lost:
            raise CurateError(f"{lost:,} members of '{self._selection}' were in shards that have been mended since: "
                              "select them anew")  # fmt: skip

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def fingerprint(self) -> str:
        return ",".join(source.fingerprint for source in self.sources.values())

    def packed(self, layout: str) -> Iterator[Packed]:
        """Output shards by the layout: `index`, `mirror`, or so many samples a shard."""
        if layout == "index":
            return (Packed(None, rows, list(rows.keys)) for rows in self._batches())
        return self._mirrored() if layout == "mirror" else self._repacked(int(layout.split()[0]))

    def _mirrored(self) -> Iterator[Packed]:
        """One output for each input shard that has members, at the same place below the inputs' common folder."""
        names = _below_common_folder([source.url for source in self.sources.values()])
        for batch in self._batches():
            for start, stop in _runs(batch.shards):
                rows = batch.part(start, stop)
                source = self.sources[int(rows.shards[0])]
                prefixes = _prefixes(rows)
                yield _pack(names[source.url], rows, prefixes, [Piece(source, rows.offsets, rows.lengths, prefixes)])

    def _repacked(self, per_shard: int) -> Iterator[Packed]:
        """Evenly filled outputs, as few as hold at most `per_shard` samples each."""
        bounds = np.linspace(0, len(self), -(-len(self) // per_shard) + 1).round().astype(int)
        batches = self._batches()
        held, begin = next(batches), 0  # what is held begins at that member
        for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
            while begin + len(held.ids) < stop:
                held, begin = held.part(start - begin, len(held.ids)).and_then(next(batches)), start
            rows = held.part(start - begin, stop - begin)
            prefixes = _prefixes(rows, everywhere=True)
            pieces = []
            for first, last in _runs(rows.shards):
                here = {place - first: prefix for place, prefix in prefixes.items() if first <= place < last}
                source = self.sources[int(rows.shards[first])]
                pieces.append(Piece(source, rows.offsets[first:last], rows.lengths[first:last], here))
            yield _pack(f"{number:06d}.tar", rows, prefixes, pieces)

    def _batches(self) -> Iterator[Rows]:
        """All members, whole shards at a time. The catalog is open only while a batch is read."""
        shards: list[int] = []
        count = 0
        for shard_id, members in self.counts.items():
            if shards and count + members > _BATCH:
                yield self._read(shards[0], shards[-1])
                shards, count = [], 0
            shards.append(shard_id)
            count += members
        if shards:
            yield self._read(shards[0], shards[-1])

    def _read(self, first: int, last: int) -> Rows:
        bounds = {"selection": self._selection, "first": first_sample_id(first), "beyond": first_sample_id(last + 1)}
        with self._catalog.reading() as connection:
            self._check_same(connection)
            found = connection.execute(
                "select samples.sample_id, shard_id, byte_offset, num_bytes, key from members join samples using (sample_id) "
                "where selection = $selection and members.sample_id >= $first and members.sample_id < $beyond "
                "and samples.sample_id >= $first and samples.sample_id < $beyond order by 1",
                bounds,
            ).fetchnumpy()
        ids, shards, offsets, lengths, keys = (np.asarray(column) for column in found.values())
        return Rows(ids, shards, offsets, lengths, keys.astype(object))

    def _check_same(self, connection: "DuckDBPyConnection") -> None:
        """CurateError if another selection has taken the name, between two batches perhaps."""
        now = sets.head(connection, "selection", self._selection)
        if now is None or now["fingerprint"] != self._made:
            raise CurateError(f"'{self._selection}' was selected anew in the meantime: export it again, into a new folder")


def _pack(path: str, rows: Rows, prefixes: dict[int, str], pieces: list[Piece]) -> Packed:
    keys = [renamed_key(key, prefixes[place]) if place in prefixes else key for place, key in enumerate(rows.keys)]
    return Packed(Output(path, pieces), rows, keys)


def _runs(shards: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where the rows of each shard begin and end."""
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)])


def _prefixes(rows: Rows, *, everywhere: bool = False) -> dict[int, str]:
    """What to put before the keys of samples that a reader of the output would take for one, by their place in it.

    A mirrored shard keeps the twins that its source has, unless what lay between them is gone; in a
    repacked one no key comes twice.
    """
    keys = rows.keys
    if not everywhere and not (keys[1:] == keys[:-1]).any():
        return {}
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    taken = set(places)
    prefixes: dict[int, str] = {}
    for twins in places.values():
        meet = twins if everywhere else [later for former, later in itertools.pairwise(twins) if later == former + 1]
        for place in meet if len(twins) > 1 else []:
            shard_id, sample_id = int(rows.shards[place]), int(rows.ids[place])
            choices = itertools.chain([f"{shard_id}-"], (f"{shard_id}-{sample_id}-" * n for n in itertools.count(1)))
            prefixes[place] = next(text for text in choices if renamed_key(keys[place], text) not in taken)
            taken.add(renamed_key(keys[place], prefixes[place]))
    return prefixes


def _below_common_folder(urls: list[str]) -> dict[str, str]:
    """A relative path for each URL: what follows the folder that all have in common, a scheme being a folder too.

    CurateError for a name with `..`, which would lead out of the export.
    """
    parts = {url: [part for part in url.replace("://", "/").split("/") if part] for url in urls}
    outside = next((url for url, path in parts.items() if ".." in path), None)
    if outside:
        raise CurateError(f"'{outside}' has '..' in its name: embed it under a name without")
    folders = [path[:-1] for path in parts.values()]
    shared = 0
    while all(len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders):
        shared += 1
    return {url: "/".join(path[shared:]) for url, path in parts.items()}
