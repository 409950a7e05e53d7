"""What an export holds: the members of a selection in tar order, divided into output shards.

Members are read in batches.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import find_unknown_shards
from curate.errors import CurateError
from curate.formats.sample_ids import first_sample_id
from curate.package_data import read_sql
from curate.stages.export.worker import OutputShard, SourceRange, SourceShard, prefix_key

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BATCH_MEMBERS = 1 << 18  # buffered at once, plus at most one shard's

MIRROR, INDEX_ONLY = "mirror", "index"


def repacked_layout(samples_per_shard: int) -> str:
    """The name of the layout with evenly filled shards."""
    return f"{samples_per_shard} samples a shard"


class MemberRows(NamedTuple):
    """Members in tar order: ids, shard ids, offsets and lengths int64 [n], keys as text.

    Weights are float32 [n], NaN where the selection has none; repeats int64 [n] are how often each
    comes in an epoch.
    """

    sample_ids: np.ndarray
    shard_ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    repeats: np.ndarray

    def slice(self, start: int, stop: int) -> "MemberRows":
        return MemberRows(*(column[start:stop] for column in self))

    def concatenate(self, rows: "MemberRows") -> "MemberRows":
        return MemberRows(*(np.concatenate(pair) for pair in zip(self, rows, strict=True)))


class PackedShard(NamedTuple):
    """One output shard, None where only an index is wanted; its members, and their keys in it."""

    output: OutputShard | None
    rows: MemberRows
    keys: list[str]


class SelectionMembers:
    """The members of a selection, or with `complement` the other samples of the shards it knows.

    With `unique_keys`, no key is exported twice. Raises CurateError where members have left the
    corpus.
    """

    def __init__(
        self,
        catalog: Catalog,
        selection: SelectionRecord,
        *,
        complement: bool = False,
        unique_keys: bool = False,
    ) -> None:
        self._catalog, self._record, self._complement = catalog, selection, complement
        with catalog.reading() as connection:
            self._check_same(connection)
            # Shards leave the corpus as a whole, and their ids are never used again: a member is in
            # the corpus if its shard is.
            unknown = find_unknown_shards(connection, selection)
            query = "stages/others_by_shard" if complement else "stages/members_by_shard"
            rows = connection.execute(read_sql(query), [selection.selection]).fetchall()
            rows = [row for row in rows if row[0] not in unknown]
            self._empty_shards = _find_empty(connection, {row[0] for row in rows}, unknown)
            self._prefixes = self._choose_prefixes(connection) if unique_keys else None
        self.sources = {shard_id: SourceShard(*source) for shard_id, *source, _ in rows}
        self.counts = {row[0]: int(row[-1]) for row in rows}
        if complement:
            return
        num_lost = selection.num_samples - len(self)
        if num_lost:
            raise CurateError(
                f"{num_lost:,} members of '{selection.selection}' were in shards that have been "
                "mended since: select them anew"
            )

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def has_weights(self) -> bool:
        return self._record.weights_by is not None and not self._complement

    @property
    def has_repeats(self) -> bool:
        return self._record.repeats is not None and not self._complement

    @property
    def checksum(self) -> str:
        return ",".join(source.checksum for source in self.sources.values())

    def pack(
        self, layout: str, *, empty_shards: bool = True, counts: list[int] | None = None
    ) -> Iterator[PackedShard]:
        """Output shards by the layout: INDEX_ONLY, MIRROR, or so many samples per shard.

        With `empty_shards` a mirror has those too of which no sample is kept. `counts` are the
        samples of each repacked shard, where they are not evenly filled any more.
        """
        if layout == INDEX_ONLY:
            return (PackedShard(None, rows, list(rows.keys)) for rows in self._read_batches())
        if layout == MIRROR:
            return self._mirror(self._empty_shards if empty_shards else {})
        if counts is not None:
            return self._repack(np.cumsum([0, *counts]))
        num_outputs = -(-len(self) // int(layout.split()[0]))
        return self._repack(np.linspace(0, len(self), num_outputs + 1).round().astype(int))

    def _mirror(self, empty_shards: dict[int, str]) -> Iterator[PackedShard]:
        """One output for each input shard, at its path below the common folder.

        Of a folder with members every shard has an output, so that numbers have no gaps.
        """
        urls = [*(source.url for source in self.sources.values()), *empty_shards.values()]
        paths = _relative_paths(urls)
        waiting = sorted(empty_shards, reverse=True)
        for batch in self._read_batches():
            for start, stop in _shard_bounds(batch.shard_ids):
                rows = batch.slice(start, stop)
                shard_id = int(rows.shard_ids[0])
                while waiting and waiting[-1] < shard_id:
                    yield _pack(paths[empty_shards[waiting.pop()]], rows.slice(0, 0), {}, [])
                source = self.sources[shard_id]
                prefixes = self._prefix_keys(rows)
                ranges = [SourceRange(source, rows.offsets, rows.lengths, prefixes)]
                yield _pack(paths[source.url], rows, prefixes, ranges)
        while waiting:
            yield _pack(paths[empty_shards[waiting.pop()]], rows.slice(0, 0), {}, [])

    def _prefix_keys(self, rows: MemberRows, *, unique: bool = False) -> dict[int, str]:
        """What to put before keys, by the sample's index; with unique_keys, before all."""
        if self._prefixes is None:
            return _find_prefixes(rows, unique=unique)
        if self._prefixes == "none":
            return {}
        ids = rows.shard_ids if self._prefixes == "shard" else rows.sample_ids
        return {index: f"{number}-" for index, number in enumerate(ids.tolist())}

    def _choose_prefixes(self, connection: "DuckDBPyConnection") -> str:
        """none where no key comes twice; the shard's id, or where that is not enough, the sample's.

        An id with a hyphen can be told from what follows, so such keys are unique whatever the
        others are.
        """
        sql = (
            f"select count(*) from (select 1 from samples where {self._condition} "
            "group by {} having count(*) > 1 limit 1)"
        )
        parameters = {"selection": self._record.selection}
        for prefix, columns in (("none", "key"), ("shard", "shard_id, key")):
            ((num_repeated,),) = connection.execute(sql.format(columns), parameters).fetchall()
            if not num_repeated:
                return prefix
        return "sample"

    @property
    def _condition(self) -> str:
        """Which rows of `samples` are exported, but for shards that are unknown."""
        negation = "not " if self._complement else ""
        return (
            f"sample_id {negation}in (select sample_id from members where selection = $selection)"
        )

    def _repack(self, bounds: np.ndarray) -> Iterator[PackedShard]:
        """Outputs that start and stop at these members."""
        batches = self._read_batches()
        buffered, buffer_start = next(batches), 0  # rows in memory, and the first one's index
        for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
            while buffer_start + len(buffered.sample_ids) < stop:
                remaining = buffered.slice(start - buffer_start, len(buffered.sample_ids))
                buffered, buffer_start = remaining.concatenate(next(batches)), start
            rows = buffered.slice(start - buffer_start, stop - buffer_start)
            if start == stop:  # all of its samples were forgotten
                yield _pack(f"{number:06d}.tar", rows, {}, [])
                continue
            prefixes = self._prefix_keys(rows, unique=True)
            ranges = []
            for first, last in _shard_bounds(rows.shard_ids):
                range_prefixes = {
                    index - first: prefix
                    for index, prefix in prefixes.items()
                    if first <= index < last
                }
                source = self.sources[int(rows.shard_ids[first])]
                offsets, lengths = rows.offsets[first:last], rows.lengths[first:last]
                ranges.append(SourceRange(source, offsets, lengths, range_prefixes))
            yield _pack(f"{number:06d}.tar", rows, prefixes, ranges)

    def _read_batches(self) -> Iterator[MemberRows]:
        """All members, whole shards at a time. The catalog is open only while a batch is read."""
        shard_ids: list[int] = []
        count = 0
        for shard_id, num_members in self.counts.items():
            if shard_ids and count + num_members > _BATCH_MEMBERS:
                yield self._read(shard_ids[0], shard_ids[-1])
                shard_ids, count = [], 0
            shard_ids.append(shard_id)
            count += num_members
        if shard_ids:
            yield self._read(shard_ids[0], shard_ids[-1])

    def _read(self, first_shard: int, last_shard: int) -> MemberRows:
        parameters = {
            "selection": self._record.selection,
            "first": first_sample_id(first_shard),
            "stop": first_sample_id(last_shard + 1),
        }
        with self._catalog.reading() as connection:
            self._check_same(connection)
            query = read_sql("stages/others" if self._complement else "stages/members")
            columns = connection.execute(query, parameters).fetchnumpy()
        weights = np.ma.filled(np.ma.asarray(columns.pop("weight")), np.nan).astype(np.float32)
        repeats = np.ma.filled(np.ma.asarray(columns.pop("repeats")), 1).astype(np.int64)
        sample_ids, shard_ids, offsets, lengths, keys = map(np.asarray, columns.values())
        return MemberRows(
            sample_ids, shard_ids, offsets, lengths, keys.astype(object), weights, repeats
        )

    def _check_same(self, connection: "DuckDBPyConnection") -> None:
        """CurateError if another selection has taken the name, perhaps between two batches."""
        name = self._record.selection
        current = sets.find_set(connection, SelectionRecord, name)
        if current is None or current.fingerprint != self._record.fingerprint:
            raise CurateError(
                f"'{name}' was selected anew in the meantime: export it again, into a new folder"
            )


def _find_empty(
    connection: "DuckDBPyConnection", filled: set[int], unknown: frozenset[int]
) -> dict[int, str]:
    """The shards without members that lie in a folder with others that have some."""
    rows = connection.execute(
        "select shard_id, url from shards where num_samples is not null order by shard_id"
    ).fetchall()
    folders = {_folder(url) for shard_id, url in rows if shard_id in filled}
    return {
        shard_id: url
        for shard_id, url in rows
        if shard_id not in filled and shard_id not in unknown and _folder(url) in folders
    }


def _folder(url: str) -> str:
    return url.rpartition("/")[0]


def _pack(
    path: str, rows: MemberRows, prefixes: dict[int, str], ranges: list[SourceRange]
) -> PackedShard:
    keys = [
        prefix_key(key, prefixes[index]) if index in prefixes else key
        for index, key in enumerate(rows.keys)
    ]
    return PackedShard(OutputShard(path, ranges), rows, keys)


def _shard_bounds(shard_ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where the rows of each shard start and stop."""
    starts = (np.flatnonzero(np.diff(shard_ids)) + 1).tolist()
    return itertools.pairwise([0, *starts, len(shard_ids)])


def _find_prefixes(rows: MemberRows, *, unique: bool = False) -> dict[int, str]:
    """What to put before the keys of samples that a reader would take for one, by their index.

    A mirrored shard keeps the duplicate keys that its source has, unless what was between them is
    gone; in a repacked one (`unique`) no key comes twice.
    """
    keys = rows.keys
    if not unique and not (keys[1:] == keys[:-1]).any():
        return {}
    indices_by_key: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        indices_by_key.setdefault(key, []).append(index)
    taken = set(indices_by_key)
    prefixes: dict[int, str] = {}
    for indices in indices_by_key.values():
        if len(indices) == 1:
            continue
        colliding = indices
        if not unique:
            pairs = itertools.pairwise(indices)
            colliding = [later for former, later in pairs if later == former + 1]
        for index in colliding:
            prefix = next(
                candidate
                for candidate in _candidate_prefixes(rows, index)
                if prefix_key(keys[index], candidate) not in taken
            )
            prefixes[index] = prefix
            taken.add(prefix_key(keys[index], prefix))
    return prefixes


def _candidate_prefixes(rows: MemberRows, index: int) -> Iterator[str]:
    shard_id, sample_id = int(rows.shard_ids[index]), int(rows.sample_ids[index])
    yield f"{shard_id}-"
    for repeats in itertools.count(1):
        yield f"{shard_id}-{sample_id}-" * repeats


def _relative_paths(urls: list[str]) -> dict[str, str]:
    """A relative path for each URL: what follows the folder that all have in common.

    A scheme counts as a folder. CurateError for a name with `..`, which would lead out of the
    export.
    """
    words = {url: [word for word in url.replace("://", "/").split("/") if word] for url in urls}
    escaping = next((url for url, path in words.items() if ".." in path), None)
    if escaping:
        raise CurateError(f"'{escaping}' has '..' in its name: embed it under a name without")
    folders = [path[:-1] for path in words.values()]
    depth = 0
    while all(len(folder) > depth and folder[depth] == folders[0][depth] for folder in folders):
        depth += 1
    return {url: "/".join(path[depth:]) for url, path in words.items()}
