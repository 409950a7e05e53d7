"""The data set that `curate.stream` returns: samples of a selection from the original shards."""

import collections
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.formats.samples import CorruptShardError, iterate_samples, to_unicode
from curate.formats.tar import BLOCK, TarReader
from curate.progress import log
from curate.storage.checksums import bytes_checksum
from curate.streaming.byte_ranges import join_neighbours
from curate.streaming.epoch_order import EpochOrder, Share, order_epoch, samples_per_rank
from curate.streaming.locations import Root, make_locator
from curate.streaming.range_reader import (
    MissingShardError,
    RangeReader,
    RangeRequest,
    changed_shard,
)
from curate.streaming.selection_index import SelectionIndex

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    _Base = IterableDataset[dict[str, Any]]
else:  # a DataLoader asks whether it is one; without torch there is no DataLoader
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError:
        _Base = object

_END_OF_ARCHIVE = bytes(2 * BLOCK)
_ORDER_BLOCK = 1 << 16  # positions that are turned into Python's integers at once


class StreamOptions(NamedTuple):
    """How a selection is streamed; `curate.stream` says what each means."""

    shuffle: int = 0
    seed: int = 0
    drop_last: bool = False
    allow_missing: bool = False
    max_waste: float = 0.2


class SelectionStream(_Base):
    """An iterable of webdataset's samples: `__key__`, `__url__`, and members by extension as bytes.

    Each iteration is an epoch of this rank and loader worker; the next one continues with the next
    epoch, and `set_epoch` sets it. Raises CurateError for shards that have changed or are gone.
    """

    def __init__(
        self,
        index: SelectionIndex,
        options: StreamOptions,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        root: Root = None,
    ) -> None:
        self.num_missing = 0  # samples of the current epoch that were left out, in this process
        self._index, self._options = index, options
        self._rank, self._world_size = rank, world_size
        self._locate = make_locator(root, index.urls)
        self._ranges = join_neighbours(
            index.shards, index.offsets, index.lengths, options.max_waste
        )
        self._epoch = 0  # of the current iteration, or of the next one
        self._position = 0  # how many samples of it were given out
        self._is_begun = False  # whether the next iteration is the next epoch
        find_share(rank, world_size)  # says at once what is wrong

    def __len__(self) -> int:
        """The samples of an epoch on this rank."""
        share = find_share(self._rank, self._world_size)
        return samples_per_rank(
            self._index.num_presentations, share.world_size, drop_last=self._options.drop_last
        )

    @property
    def num_requests(self) -> int:
        """How many ranges an epoch of all ranks reads; a range on a border is read on both.

        Where samples repeat, a range is read again, as often as its most frequent sample comes.
        """
        return len(self._ranges.starts)

    @property
    def num_kept_bytes(self) -> int:
        """The bytes of the samples, tar headers included."""
        return int(self._index.lengths.sum())

    @property
    def num_bytes(self) -> int:
        """How many bytes these are: of the samples, and of the gaps that are joined."""
        index, last_rows = self._index, self._ranges.stops - 1
        stops = index.offsets[last_rows] + index.lengths[last_rows]
        return int((stops - index.offsets[self._ranges.starts]).sum())

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are spawned: they know the rank that is known here."""
        share = find_share(self._rank, self._world_size)
        ranks = {"_rank": share.rank, "_world_size": share.world_size}
        return self.__dict__ | ranks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not a generator itself: the state is that of the new epoch before its first sample.
        if self._is_begun:
            self.set_epoch(self._epoch + 1)
        self._is_begun = True
        return self._iterate(self._order(find_share(self._rank, self._world_size)))

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration: another order of the same samples.

        Needed before each epoch where a DataLoader starts its workers anew, because these begin
        with a copy of this object.
        """
        self._epoch, self._position, self._is_begun = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the current epoch is, of this process: numbers and text alone.

        StatefulDataLoader of torchdata collects those of its workers.
        """
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues with the sample after the last one that was given out.

        Raises CurateError for the state of another selection, or one that was streamed otherwise.
        """
        expected = self._identity()
        different = [name for name, value in expected.items() if state.get(name) != value]
        if different:
            name = different[0]
            raise CurateError(
                f"the state is of another stream: its {name} is {state.get(name)!r}, not "
                f"{expected[name]!r}; go on with the same selection and options, or start anew"
            )
        self.set_epoch(int(state["epoch"]))
        self._position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        """All that the order of the samples depends on."""
        share = find_share(self._rank, self._world_size)
        return {
            "selection": self._index.settings.selection,
            "fingerprint": self._index.settings.fingerprint,
            "num_samples": self._index.num_presentations,
            "shuffle": self._options.shuffle,
            "seed": self._options.seed,
            "drop_last": self._options.drop_last,
            "max_waste": self._options.max_waste,
            **share._asdict(),
        }

    def _order(self, share: Share) -> EpochOrder:
        options = self._options
        num_samples = self._index.num_presentations
        remainder = num_samples % share.world_size
        if remainder and share.rank == share.worker == 0:
            action = f"{remainder} are left out of this epoch"
            if not options.drop_last:
                action = f"{share.world_size - remainder} come once more in this epoch"
            log.info(
                "%s samples on %d ranks: %s, so that all ranks have as many",
                f"{num_samples:,}",
                share.world_size,
                action,
            )
        return order_epoch(
            self._ranges,
            share,
            seed=options.seed,
            epoch=self._epoch,
            shuffle=options.shuffle,
            drop_last=options.drop_last,
            repeats=self._index.repeats,
        )

    def _iterate(self, order: EpochOrder) -> Iterator[dict[str, Any]]:
        self.num_missing = 0
        missing: collections.Counter[str] = collections.Counter()
        with RangeReader(self._locate) as reader:
            buffer = _PieceBuffer(self._index, order, reader, self._position)
            for row, data in buffer.take_all():
                self._position += 1
                if not isinstance(data, MissingShardError):
                    yield parse_sample(self._index, row, data)
                elif self._options.allow_missing:
                    self.num_missing += 1
                    missing[self._index.urls[self._index.shards[row]]] += 1
                else:
                    raise data
        for url, count in sorted(missing.items()):
            log.warning("'%s' is gone: %s of its samples were left out", url, f"{count:,}")


class _PieceBuffer:
    """What was read and not given out yet: at most as many samples as the shuffle puts off.

    `first_output` is where an interrupted epoch goes on.
    """

    def __init__(
        self, index: SelectionIndex, order: EpochOrder, reader: RangeReader, first_output: int
    ) -> None:
        self._index, self._rows, self._pieces = index, order.rows, order.pieces
        self._output = order.output[first_output:]
        # Which pieces still have something to give, and to how many samples.
        self._num_left = np.bincount(
            self._find_pieces(self._output), minlength=len(order.pieces) - 1
        )
        self._numbers = np.flatnonzero(self._num_left)
        self._read_pieces = zip(
            self._numbers.tolist(), reader.read(self._iterate_requests()), strict=True
        )
        self._held: dict[int, _HeldPiece] = {}  # by the number of the piece

    def take_all(self) -> Iterator[tuple[int, bytes | MissingShardError]]:
        """The row and the bytes of each sample, in the order of the output."""
        for first in range(0, len(self._output), _ORDER_BLOCK):
            positions = self._output[first : first + _ORDER_BLOCK]
            rows = self._rows[positions]
            columns = (
                rows,
                self._find_pieces(positions),
                self._index.offsets[rows],
                self._index.lengths[rows],
            )
            for row, number, offset, length in zip(
                *(column.tolist() for column in columns), strict=True
            ):
                yield row, self._take(number, offset, length)

    def _take(self, number: int, offset: int, length: int) -> bytes | MissingShardError:
        while number not in self._held:
            read_number, data = next(self._read_pieces)
            start = int(self._index.offsets[self._rows[self._pieces[read_number]]])
            self._held[read_number] = _HeldPiece(data, start, int(self._num_left[read_number]))
        piece = self._held[number]
        piece.num_left -= 1
        if not piece.num_left:
            del self._held[number]
        if isinstance(piece.data, MissingShardError):
            return piece.data
        return piece.data[offset - piece.start : offset - piece.start + length]

    def _find_pieces(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._pieces, positions, side="right") - 1

    def _iterate_requests(self) -> Iterator[RangeRequest]:
        index = self._index
        for number in self._numbers.tolist():
            first_row = self._rows[self._pieces[number]]
            last_row = self._rows[self._pieces[number + 1] - 1]
            shard = index.shards[first_row]
            yield RangeRequest(
                index.urls[shard],
                int(index.offsets[first_row]),
                int(index.offsets[last_row] + index.lengths[last_row]),
                int(index.shard_bytes[shard]),
            )


class _HeldPiece:
    """The bytes of a request, from `start` of its shard on, for `num_left` samples."""

    __slots__ = ("data", "num_left", "start")

    def __init__(self, data: bytes | MissingShardError, start: int, num_left: int) -> None:
        self.data, self.start, self.num_left = data, start, num_left


def parse_sample(index: SelectionIndex, row: int, data: bytes) -> dict[str, Any]:
    """A sample as webdataset gives it, from its bytes in the tar.

    Raises CurateError where these are not the ones that were embedded: by the tar's headers, the
    key, and the checksum of the image.
    """
    url, key = index.urls[index.shards[row]], index.keys[row].as_py()
    reader = TarReader(io.BytesIO(data + _END_OF_ARCHIVE), with_checksum=False)
    try:
        samples = list(iterate_samples(reader, index.settings.key_rule))
    except CorruptShardError as error:
        raise changed_shard(url, f"at the sample '{key}': {error}") from error
    if len(samples) != 1 or to_unicode(samples[0].key) != key:
        found = f"'{to_unicode(samples[0].key)}'" if samples else "nothing"
        raise changed_shard(url, f"where '{key}' was is {found}")
    sample = samples[0]
    extension = index.extensions[row].as_py()
    if extension is not None:
        image = sample.members.get(extension.lower())
        if image is None or not _is_same(image, int(index.checksums[row])):
            raise changed_shard(url, f"the image of '{key}' is another")
    result: dict[str, Any] = {"__key__": sample.key, "__url__": url, **sample.members}
    if index.weights is not None:
        result["__weight__"] = float(index.weights[row])
    return result


def _is_same(image: bytes, checksum: int) -> bool:
    """By its checksum, where the package that computes it is installed."""
    try:
        return bytes_checksum(image) == checksum
    except ImportError:
        return True


def find_share(rank: int | None, world_size: int | None) -> Share:
    """The rank and the loader worker of this process, as webdataset finds them.

    Of the rank: what was given, else RANK and WORLD_SIZE in the environment, else what
    torch.distributed says. Of the worker: WORKER and NUM_WORKERS, else that of the DataLoader.
    Raises CurateError for numbers that do not fit together.
    """
    if (rank is None) != (world_size is None):
        raise CurateError("rank and world_size go together: give both, or none")
    if rank is None or world_size is None:
        rank, world_size = _find_rank()
    worker, num_workers = _find_worker()
    if not 0 <= rank < world_size or not 0 <= worker < num_workers:
        raise CurateError(
            f"rank {rank} of {world_size}, worker {worker} of {num_workers}: they count from 0 "
            "and are below the number of all"
        )
    return Share(rank, world_size, worker, num_workers)


def _find_rank() -> tuple[int, int]:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed = sys.modules.get("torch.distributed")  # whoever uses it has imported it
    if distributed and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _find_worker() -> tuple[int, int]:
    if "WORKER" in os.environ and "NUM_WORKERS" in os.environ:
        return int(os.environ["WORKER"]), int(os.environ["NUM_WORKERS"])
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data else None
    return (info.id, info.num_workers) if info else (0, 1)
