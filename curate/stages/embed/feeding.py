"""Beside a GPU: processes read, decode and write, and this one only hands their images over.

A decoder takes whole shards. It decodes into slots of memory that it shares with the process that
has the device, sends the number of a slot that is full, and gets the vectors back in the same slot.
So what is done for each image is spread over the decoders, and the process with the device has work
for each batch alone.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from queue import Queue, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from curate.errors import CurateError
from curate.execution.limits import memory_limit
from curate.execution.processes import begin_child, child_context, without_users_code
from curate.execution.reporting import report_progress, set_reporter
from curate.execution.shared_memory import SharedMemory
from curate.execution.timing import Stopwatch, add_seconds
from curate.formats.images import collect_complaints
from curate.stages.embed.device import Device, load_device
from curate.stages.embed.inference import (
    CannotContinueError,
    EncodeTexts,
    batch_limits,
    encode_in_parts,
    explain_encoder_errors,
    is_out_of_memory,
    load_text_encoder,
)
from curate.stages.embed.member_counts import MemberCounts
from curate.stages.embed.pending import SampleRecord
from curate.stages.embed.worker import (
    EmbedShards,
    GroupResult,
    ShardEnd,
    ShardTask,
    captions_to_encode,
    set_caption_vectors,
    set_vectors,
)

_SLOT_ROWS = 64
_SLOT_BYTES = 16 << 20  # at most, of the pixels
_SLOTS = 4  # of each decoder: one is filled, one waits, one is encoded, one is written
_MEMORY_SHARE = 8  # all slots take at most this part of the memory
_CHUNK_ROWS = 8  # of a slot, decoded by one thread without a break
_MAX_THREADS = 8  # of a decoder, which decode where other decoders have nothing to do
_MAX_BEGUN = 2  # batches on the device
_IDLE = "idle"  # what a decoder does that waits for a shard


@dataclass(frozen=True)
class FeedDevice:
    """The task for a machine's GPU: embed a group of shards, with decoders beside this process.

    `dim` is the length of the encoder's vectors. Decoders and the encoder stay for the next group.
    """

    task: EmbedShards
    dim: int
    num_decoders: int

    def __call__(self, shards: Iterable[ShardTask]) -> GroupResult:
        try:
            return _open_feeder(self).embed(shards)
        except CannotContinueError as error:
            close_feeder()
            return GroupResult.of_end(error)
        except BaseException:
            close_feeder()  # whose decoders may be anywhere in their work
            raise


_open: "list[tuple[FeedDevice, _Feeder]]" = []  # at most one in a process


def _open_feeder(feed: FeedDevice) -> "_Feeder":
    if not _open or _open[0][0] != feed:
        close_feeder()
        with explain_encoder_errors(feed.task.encoder):
            device = load_device(feed.task.encoder)
            captions = feed.task.captions
            encode_texts = load_text_encoder(feed.task.encoder) if captions else None
        _open.append((feed, _Feeder(feed, device, encode_texts)))
    return _open[0][1]


def close_feeder() -> None:
    """End the decoders of this process, if it has any."""
    while _open:
        _open.pop()[1].close()


class _Slots(NamedTuple):
    """The memory that a decoder shares with the process that has the device.

    `pixels` uint8 [slots, rows, size, size, 4]; `vectors` float16 [slots, rows, dim].
    """

    pixels: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class _SlotShape:
    """How the memory of one decoder is divided."""

    rows: int
    size: int
    dim: int

    @property
    def num_pixel_bytes(self) -> int:
        return _SLOTS * self.rows * self.size**2 * 4

    def allocate(self) -> SharedMemory:
        return SharedMemory(self.num_pixel_bytes + _SLOTS * self.rows * self.dim * 2)

    def divide(self, memory: SharedMemory) -> _Slots:
        pixels = memory.array((_SLOTS, self.rows, self.size, self.size, 4), np.uint8)
        vectors = memory.array((_SLOTS, self.rows, self.dim), np.float16, self.num_pixel_bytes)
        return _Slots(pixels, vectors)


def _choose_shape(feed: FeedDevice) -> _SlotShape:
    size = feed.task.encoder.preprocessing.size
    num_bytes = min(_SLOT_BYTES, memory_limit() // (_MEMORY_SHARE * _SLOTS * feed.num_decoders))
    rows = min(_SLOT_ROWS, feed.task.batch_size, num_bytes // (size**2 * 4))
    return _SlotShape(max(rows, 1), size, feed.dim)


# -- what passes between the process with the device and a decoder -------------------------------


class _ShardWanted(NamedTuple):
    """A decoder has read its shard, and waits for the next."""


class _SlotFilled(NamedTuple):
    """A slot has so many rows with images; captions are those of the rows, or empty."""

    slot: int
    num_rows: int
    captions: list[str | None]
    work: int  # for the progress bar


class _DecoderFinished(NamedTuple):
    """A decoder has written all of its shards, or why it could not go on."""

    result: GroupResult | None
    error: str | None
    work: int


class _NextShard(NamedTuple):
    """A shard to read; None after the last."""

    shard: ShardTask | None


class _SlotEncoded(NamedTuple):
    """The vectors of a slot are there; those of its captions, float16 [captions, dim], or None."""

    slot: int
    caption_vectors: np.ndarray | None


class _Waiting(NamedTuple):
    """A slot of a decoder that is full and not encoded yet."""

    decoder: "_Decoder"
    filled: _SlotFilled

    @property
    def pixels(self) -> np.ndarray:
        return self.decoder.slots.pixels[self.filled.slot, : self.filled.num_rows]


class _Decoder(NamedTuple):
    """A decoder, as the process with the device sees it."""

    process: Any
    connection: Connection
    slots: _Slots


# -- in the process with the device ----------------------------------------------------------------


class _Feeder:
    """The device and its decoders."""

    def __init__(self, feed: FeedDevice, device: Device, encode_texts: EncodeTexts | None) -> None:
        self._task, self._device, self._encode_texts = feed.task, device, encode_texts
        self._batch_size = feed.task.batch_size
        self._waiting: deque[_Waiting] = deque()
        self._begun: deque[tuple[list[_Waiting], Any]] = deque()
        self._decoders: list[_Decoder] = []
        self._wanting: set[int] = set()  # decoders that wait for a shard, by their number
        try:
            self._start_decoders(feed)
        except BaseException:
            self.close()
            raise

    def _start_decoders(self, feed: FeedDevice) -> None:
        context = child_context(feed.task.modules)
        # As many threads decode at once as there are decoders, whichever decoders they belong to.
        self._tokens = context.Semaphore(feed.num_decoders)
        shape = _choose_shape(feed)
        # The device is not for them.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        for _ in range(feed.num_decoders):
            memory = shape.allocate()
            ours, theirs = context.Pipe()
            threads = min(feed.num_decoders, _MAX_THREADS)
            process = context.Process(
                target=_run_decoder,
                args=(feed.task, shape, memory, theirs, self._tokens, threads, environment),
                daemon=True,
            )
            with without_users_code():
                process.start()
            theirs.close()
            slots = shape.divide(memory)
            memory.close()
            self._device.register(slots.pixels)
            self._decoders.append(_Decoder(process, ours, slots))

    def embed(self, shards: Iterable[ShardTask]) -> GroupResult:
        """Embed a group of shards.

        Raises CannotContinueError where the encoder fails or a decoder dies, and CurateError for
        what a decoder raised.
        """
        stopwatch = Stopwatch()
        remaining = deque(shards)
        results: dict[int, GroupResult] = {}  # by the number of the decoder
        for number in list(self._wanting):  # since the group before
            self._send_shard(number, remaining)
        while len(results) < len(self._decoders):
            can_begin = self._can_begin()
            with stopwatch.measure("wait for images"):
                # Waits only where the device has nothing to do.
                is_idle = not can_begin and not self._begun
                self._receive(remaining, results, None if is_idle else 0)
            if self._can_begin():
                with stopwatch.measure("encode"):
                    self._begin()
            elif self._begun:
                with stopwatch.measure("encode"):
                    self._finish()
        stopwatch.switch("other")
        return _merge(list(results.values()), stopwatch, self._notes())

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.process.terminate()
        for decoder in self._decoders:
            decoder.process.join()
            decoder.connection.close()
        self._decoders.clear()

    def _receive(
        self, remaining: deque[ShardTask], results: dict[int, GroupResult], timeout: float | None
    ) -> None:
        numbers = {decoder.connection: number for number, decoder in enumerate(self._decoders)}
        for connection in wait(list(numbers), timeout):
            number = numbers[connection]  # type: ignore[index]
            try:
                message = self._decoders[number].connection.recv()
            except (EOFError, OSError) as error:
                raise CannotContinueError(
                    "a process that decodes images died, possibly out of memory: run the same "
                    "command again with fewer --workers (finished work is kept)"
                ) from error
            if isinstance(message, _ShardWanted):
                self._wanting.add(number)
                if number not in results:  # or it is for the next group
                    self._send_shard(number, remaining)
            elif isinstance(message, _SlotFilled):
                self._waiting.append(_Waiting(self._decoders[number], message))
                report_progress(message.work, message.num_rows)
            else:
                if message.error is not None:
                    raise CurateError(message.error)
                results[number] = message.result
                report_progress(message.work, 0)

    def _send_shard(self, number: int, remaining: deque[ShardTask]) -> None:
        self._wanting.discard(number)
        shard = remaining.popleft() if remaining else None
        self._decoders[number].connection.send(_NextShard(shard))

    def _can_begin(self) -> bool:
        """A full batch is begun while another is on the device, and any batch where none is."""
        if not self._begun:
            return bool(self._waiting)
        if len(self._begun) == _MAX_BEGUN:
            return False
        return sum(waiting.filled.num_rows for waiting in self._waiting) >= self._limit()

    def _limit(self) -> int:
        image_limit, _ = batch_limits(self._task.encoder)
        return image_limit.count or self._batch_size

    def _begin(self) -> None:
        """Begin a batch of as many waiting slots as fit into it."""
        batch = [self._waiting.popleft()]
        count = batch[0].filled.num_rows
        while self._waiting and count + self._waiting[0].filled.num_rows <= self._limit():
            batch.append(self._waiting.popleft())
            count += batch[-1].filled.num_rows
        if count > self._limit():  # not even one slot fits
            self._deliver(batch, self._encode_in_parts(batch))
            return
        try:
            self._begun.append((batch, self._device.begin([waiting.pixels for waiting in batch])))
        except Exception as error:
            self._encode_again(batch, error)

    def _finish(self) -> None:
        batch, begun = self._begun.popleft()
        try:
            vectors = self._device.finish(begun)
        except Exception as error:
            self._encode_again(batch, error)
        else:
            self._deliver(batch, vectors)

    def _encode_again(self, batch: list[_Waiting], error: Exception) -> None:
        """After out of memory: this batch in parts, and what has begun. Else the run ends."""
        if not is_out_of_memory(error):
            with explain_encoder_errors(self._task.encoder):
                raise error
        begun = [*(earlier for earlier, _ in self._begun), batch]
        self._begun.clear()
        self._device.release()
        image_limit, _ = batch_limits(self._task.encoder)
        image_limit.halve(sum(waiting.filled.num_rows for waiting in batch))
        for one in begun:
            self._deliver(one, self._encode_in_parts(one))

    def _encode_in_parts(self, batch: list[_Waiting]) -> np.ndarray:
        images = [image for waiting in batch for image in waiting.pixels]

        def encode(part: list[np.ndarray]) -> np.ndarray:
            return self._device.finish(self._device.begin([np.stack(part)]))

        image_limit, _ = batch_limits(self._task.encoder)
        return encode_in_parts(self._task.encoder, encode, images, image_limit)

    def _deliver(self, batch: list[_Waiting], vectors: np.ndarray) -> None:
        """Put vectors into the slots of their images, and tell the decoders."""
        start = 0
        for decoder, filled in batch:
            rows = vectors[start : start + filled.num_rows]
            decoder.slots.vectors[filled.slot, : filled.num_rows] = rows
            start += filled.num_rows
            encoded = _SlotEncoded(filled.slot, self._encode_captions(filled.captions))
            decoder.connection.send(encoded)

    def _encode_captions(self, captions: list[str | None]) -> np.ndarray | None:
        texts = [caption for caption in captions if caption]
        if not texts or self._encode_texts is None:
            return None
        _, text_limit = batch_limits(self._task.encoder)
        return encode_in_parts(self._task.encoder, self._encode_texts, texts, text_limit)

    def _notes(self) -> tuple[str, ...]:
        limits = batch_limits(self._task.encoder)
        return (*(limit.note for limit in limits if limit.note), *self._device.notes)


def _merge(results: list[GroupResult], stopwatch: Stopwatch, notes: tuple[str, ...]) -> GroupResult:
    """The results of decoders as one, with the time of the process that has the device."""
    seconds, counts = dict(stopwatch.seconds), MemberCounts()
    problems: dict[int, str] = {}
    for result in results:
        problems |= result.problems
        add_seconds(seconds, result.seconds)
        counts.merge(result.members)
    return GroupResult(
        problems,
        seconds,
        sum(result.num_complaints for result in results),
        next((result.complaint for result in results if result.complaint), ""),
        counts,
        notes=notes,
    )


# -- in a decoder ----------------------------------------------------------------------------------


def _run_decoder(
    task: EmbedShards,
    shape: _SlotShape,
    memory: SharedMemory,
    connection: Connection,
    tokens: Any,
    threads: int,
    environment: dict[str, str],
) -> None:
    """What a decoder does, until its parent ends it."""
    begin_child(1, environment)
    slots = shape.divide(memory)
    memory.close()
    filler = _SlotFiller(task, slots, connection, tokens, threads)
    threading.Thread(target=filler.receive, daemon=True).start()
    set_reporter(filler.count_progress)
    with collect_complaints():
        while True:
            try:
                finished = _DecoderFinished(filler.embed_group(), None, filler.take_progress())
            except Exception as error:  # the boundary of the process
                reason = str(error) if isinstance(error, CurateError) else repr(error)
                finished = _DecoderFinished(None, reason, 0)
            filler.send(finished)


@dataclass
class _SlotRecords:
    """A slot that is being filled, with all records since the one before: also those without an
    image. Without images there is no slot."""

    slot: int | None = None
    records: list[SampleRecord | ShardEnd] = field(default_factory=list)
    rows: list[tuple[int, SampleRecord]] = field(default_factory=list)  # decoded, by row
    num_rows: int = 0
    num_chunks: int = 1  # that are not decoded, and one for the reader that is not done with it
    caption_vectors: np.ndarray | None = None
    error: BaseException | None = None
    is_encoded: threading.Event = field(default_factory=threading.Event)


class _SlotFiller:
    """The threads of a decoder: one reads shards, several decode, one receives, and this one
    writes."""

    def __init__(
        self,
        task: EmbedShards,
        slots: _Slots,
        connection: Connection,
        tokens: Any,
        threads: int,
    ) -> None:
        self._task, self._slots, self._connection = task, slots, connection
        self._tokens, self._pool = tokens, ThreadPoolExecutor(threads)
        self._lock, self._send_lock = threading.Lock(), threading.Lock()
        self._shards: SimpleQueue[ShardTask | None] = SimpleQueue()
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(len(slots.pixels)):
            self._free.put(slot)
        self._filled: dict[int, _SlotRecords] = {}
        self._seconds: dict[str, float] = {}
        self._work = 0

    def count_progress(self, work: int, num_samples: int) -> None:
        """The reporter of this process: the next message to the process with the device says it."""
        with self._lock:
            self._work += work

    def take_progress(self) -> int:
        """What was counted since the last message."""
        with self._lock:
            work, self._work = self._work, 0
        return work

    def send(self, message: Any) -> None:
        with self._send_lock:
            self._connection.send(message)

    def receive(self) -> None:
        """Take what the process with the device sends, until it closes the connection."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                if isinstance(message, _NextShard):
                    self._shards.put(message.shard)
                else:
                    slot_records = self._filled.pop(message.slot)
                    slot_records.caption_vectors = message.caption_vectors
                    slot_records.is_encoded.set()
        os._exit(1)

    def embed_group(self) -> GroupResult:
        """Embed the shards that are given to this decoder, until it is told that there are none."""
        stopwatch, counts = Stopwatch(), MemberCounts()
        self._seconds = {}
        filled: Queue[_SlotRecords | None] = Queue()
        reader = threading.Thread(target=self._fill_slots, args=(filled, counts), daemon=True)
        reader.start()
        encoded = self._take_vectors(filled, stopwatch)
        result = self._task.write_shards(encoded, stopwatch, counts)
        reader.join()
        add_seconds(result.seconds, self._seconds)
        result.seconds.pop(_IDLE, None)  # also before its first shard, and between groups
        return result

    def _iterate_shards(self, stopwatch: Stopwatch) -> Iterator[ShardTask]:
        while True:
            self.send(_ShardWanted())
            with stopwatch.measure(_IDLE):
                shard = self._shards.get()
            if shard is None:
                return
            yield shard

    def _fill_slots(self, filled: "Queue[_SlotRecords | None]", counts: MemberCounts) -> None:
        """In a thread of its own: read records, and give each that may have an image a row."""
        stopwatch = Stopwatch()
        slot_records = _SlotRecords()
        try:
            records = self._task.read_shards(self._iterate_shards(stopwatch), counts)
            chunk: list[tuple[int, SampleRecord]] = []
            for record in stopwatch.measure_each("read", records):
                slot_records.records.append(record)
                if isinstance(record, SampleRecord) and not record.error:
                    if slot_records.slot is None:
                        with stopwatch.measure("wait for a slot"):
                            slot_records.slot = self._free.get()
                        self._filled[slot_records.slot] = slot_records
                    chunk.append((slot_records.num_rows, record))
                    slot_records.num_rows += 1
                is_full = slot_records.num_rows == len(self._slots.pixels[0])
                if len(chunk) == _CHUNK_ROWS or (chunk and is_full):
                    self._submit(slot_records, chunk)
                    chunk = []
                if is_full:
                    filled.put(slot_records)
                    self._end_chunk(slot_records)
                    slot_records = _SlotRecords()
            if chunk:
                self._submit(slot_records, chunk)
        except BaseException as error:  # handed on to the thread that writes
            slot_records.error = error
            slot_records.is_encoded.set()
        filled.put(slot_records)
        self._end_chunk(slot_records)
        filled.put(None)
        with self._lock:
            add_seconds(self._seconds, stopwatch.seconds)

    def _submit(self, slot_records: _SlotRecords, chunk: list[tuple[int, SampleRecord]]) -> None:
        with self._lock:
            slot_records.num_chunks += 1
        self._pool.submit(self._decode_chunk, slot_records, chunk)

    def _decode_chunk(
        self, slot_records: _SlotRecords, chunk: list[tuple[int, SampleRecord]]
    ) -> None:
        try:
            with self._tokens:
                started = time.thread_time()
                pixels = self._slots.pixels[slot_records.slot]
                decoded = []
                for row, record in chunk:
                    self._task.decode(record)
                    if record.rgbx is not None:
                        pixels[row] = record.rgbx
                        record.rgbx = None
                        decoded.append((row, record))
                seconds = time.thread_time() - started
            with self._lock:
                slot_records.rows += decoded
                add_seconds(self._seconds, {"decode": seconds})
        except BaseException as error:  # handed on to the thread that writes
            slot_records.error = error
        self._end_chunk(slot_records)

    def _end_chunk(self, slot_records: _SlotRecords) -> None:
        """After the last chunk, the slot goes to the device."""
        with self._lock:
            slot_records.num_chunks -= 1
            is_last = not slot_records.num_chunks
        if not is_last:
            return
        if slot_records.error or slot_records.slot is None:
            slot_records.is_encoded.set()
            return
        slot_records.rows.sort(key=lambda pair: pair[0])
        captions: list[str | None] = []
        if self._task.captions:
            captions = captions_to_encode([record for _, record in slot_records.rows])
        self.send(
            _SlotFilled(slot_records.slot, slot_records.num_rows, captions, self.take_progress())
        )

    def _take_vectors(
        self, filled: "Queue[_SlotRecords | None]", stopwatch: Stopwatch
    ) -> Iterator[SampleRecord | ShardEnd]:
        """The records in their order, with the vectors that came back."""
        while True:
            with stopwatch.measure(_IDLE):
                slot_records = filled.get()
            if slot_records is None:
                return
            with stopwatch.measure("wait for the device"):
                slot_records.is_encoded.wait()
            if slot_records.error:
                raise slot_records.error
            if slot_records.slot is not None:
                vectors = self._slots.vectors[slot_records.slot, : slot_records.num_rows].copy()
                self._free.put(slot_records.slot)
                records = [record for _, record in slot_records.rows]
                set_vectors(records, vectors[[row for row, _ in slot_records.rows]])
                if slot_records.caption_vectors is not None:
                    captioned = [record for record in records if record.caption]
                    set_caption_vectors(captioned, slot_records.caption_vectors)
            yield from slot_records.records
